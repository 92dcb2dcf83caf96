"""Against transformers on torch, over 500 tokens and more."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jopd.models import hf

pytestmark = pytest.mark.filterwarnings('ignore')  # torch's and transformers'

TOKENS = np.random.default_rng(0).integers(0, 96, (2, 600))


each = pytest.mark.parametrize(
  'oracle',
  ['qwen3-tied', 'qwen2-untied', 'llama', 'mistral', 'gemma', 'qwen3-moe'],
  indirect=True,
)


def _torch_logits(model, tokens):
  import torch

  with torch.no_grad():
    return model(torch.tensor(tokens)).logits.float().numpy()


def _logits(model, params, tokens):
  hidden, _ = jax.jit(model.apply)(params, jnp.asarray(tokens))
  return np.asarray(hidden @ model.head(params).T, np.float32)


def test_logits_equal_those_of_transformers(oracle):
  # Kills: the rotary base of another model, pairs (2i, 2i+1), query heads
  # given to key heads round robin, N = D / H, q_norm exchanged with k_norm; a
  # window one too wide, angles that are not scaled, or all scaled alike.
  folder, torch_model = oracle
  model, params = hf.load(folder)
  want = _torch_logits(torch_model, TOKENS)
  np.testing.assert_allclose(
    _logits(model, params, TOKENS), want, atol=3e-4, rtol=0
  )


@pytest.mark.parametrize(
  'oracle', ['mistral', 'gemma', 'qwen3-moe'], indirect=True
)
def test_padding_on_the_right_changes_no_real_logit(oracle):
  # transformers needs a mask for padding; ours does not. Kills:
  # a window counted from the end of the row.
  import torch

  folder, torch_model = oracle
  model, params = hf.load(folder)
  tokens, lengths = TOKENS[:, :200], [200, 90]
  real = np.arange(200) < np.array(lengths)[:, None]
  with torch.no_grad():
    want = torch_model(
      torch.tensor(tokens), attention_mask=torch.tensor(real)
    ).logits.numpy()
  got = _logits(model, params, np.where(real, tokens, 3))
  np.testing.assert_allclose(got[real], want[real], atol=3e-4, rtol=0)


@each
def test_decoding_through_the_cache_equals_generate(oracle):
  # Kills: decoding at position start + 1; reading the slot yet to be written;
  # a cache that holds keys before the rotation or the norm. A plain forward
  # sees none of these.
  import torch

  folder, torch_model = oracle
  model, params = hf.load(folder)
  prompt, steps = TOKENS[:, :512], 32
  want = torch_model.generate(
    torch.tensor(prompt),
    attention_mask=torch.ones_like(torch.tensor(prompt)),
    max_new_tokens=steps,
    do_sample=False,
    pad_token_id=0,
  ).numpy()

  @jax.jit
  def generate(params, prompt):
    head = model.head(params)
    cache = model.init_cache(2, 512 + steps, jnp.float32)
    hidden, cache = model.apply(params, prompt, None, cache)
    params = model.unstack(params)
    logp = jax.nn.log_softmax(hidden[:, -1] @ head.T)

    def step(carry, position):
      logp, cache = carry
      token = jnp.argmax(logp, axis=-1)
      start = jnp.full(2, position)
      hidden, cache = model.apply(params, token[:, None], start, cache)
      return (jax.nn.log_softmax(hidden[:, 0] @ head.T), cache), (token, logp)

    positions = 512 + jnp.arange(steps)
    _, (tokens, logps) = jax.lax.scan(step, (logp, cache), positions)
    return tokens.T, logps.swapaxes(0, 1)

  tokens, logps = generate(params, jnp.asarray(prompt))
  np.testing.assert_array_equal(tokens, want[:, 512:])
  want_logps = jax.nn.log_softmax(_torch_logits(torch_model, want)[:, 511:-1])
  np.testing.assert_allclose(logps, want_logps, atol=3e-4, rtol=0)


@pytest.mark.parametrize(
  ('oracle', 'shard_bytes'),
  [
    ('qwen3-tied', 2**30),
    ('qwen3-untied', 9_000),
    ('qwen2-untied', 9_000),
    ('qwen2-window', 2**30),
    ('qwen3-yarn', 2**30),
    ('llama', 2**30),
    ('mistral', 2**30),
    ('gemma', 9_000),
    ('qwen3-moe', 9_000),
  ],
  indirect=['oracle'],
)
def test_transformers_loads_what_we_save(oracle, tmp_path, shard_bytes):
  # Kills: a transposed matrix that our own reader transposes back; a config
  # that leaves out the rotary base or the head size.
  import transformers

  folder, torch_model = oracle
  model, params = hf.load(folder)
  hf.save(tmp_path / 'out', model, params, max_shard_bytes=shard_bytes)
  again, info = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / 'out', output_loading_info=True
  )
  assert not any(info.values())
  assert type(again) is type(torch_model)
  np.testing.assert_array_equal(
    _torch_logits(again, TOKENS), _torch_logits(torch_model, TOKENS)
  )
  files = list((tmp_path / 'out').glob('*.safetensors'))
  assert (len(files) > 1) == (shard_bytes == 9_000)
  _, params_again = hf.load(tmp_path / 'out')
  jax.tree.map(np.testing.assert_array_equal, params_again, params)


@pytest.mark.parametrize('oracle', ['qwen2-untied'], indirect=True)
def test_a_sharded_checkpoint_of_transformers_loads(oracle, tmp_path):
  # Kills: reading the first shard only.
  folder, torch_model = oracle
  torch_model.save_pretrained(tmp_path, max_shard_size='20KB')
  assert (tmp_path / 'model.safetensors.index.json').exists()
  _, want = hf.load(folder)
  _, got = hf.load(tmp_path)
  jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.parametrize(
  ('oracle', 'name'),
  [
    ('qwen3-untied', 'bfloat16'),
    ('qwen2-tied', 'float16'),
    ('gemma', 'bfloat16'),
  ],
  indirect=['oracle'],
)
def test_half_precision_checkpoints_load_and_run(oracle, tmp_path, name):
  # Kills: reading the bits of bfloat16 as float16; a float32 constant that
  # promotes the residual stream.
  import torch
  import transformers

  folder, _ = oracle
  half = transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=getattr(torch, name)
  )
  half.save_pretrained(tmp_path)
  model, params = hf.load(tmp_path)
  assert {p.dtype.name for p in jax.tree.leaves(params)} == {name}
  hidden, _ = jax.jit(model.apply)(params, jnp.asarray(TOKENS[:, :64]))
  assert hidden.dtype.name == name
  # Equal weights in float32: rounding of the computation is out of the way.
  # (Read anew: `half.float()` would keep constants of Gemma's rounded.)
  model, params = hf.load(tmp_path, dtype='float32')
  wide = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path, dtype=torch.float32
  )
  np.testing.assert_allclose(
    _logits(model, params, TOKENS),
    _torch_logits(wide, TOKENS),
    atol=3e-4,
    rtol=0,
  )
