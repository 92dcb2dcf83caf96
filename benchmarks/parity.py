"""Our forward pass and decoding against transformers', family by family.

  python benchmarks/parity.py [--length=L] [--new=N] [--json]

For each family transformers makes a tiny random model on torch and saves it;
jopd loads the folder. Both read the same L random tokens in float32, and both
continue them by N tokens, greedily, ours through the cache of the sampler.
Rotary bases are not the default ones, windows and original contexts are far
shorter than L, and head sizes are not width / heads.

  logits     the largest difference of any logit, and of how large ones
  greedy     the part of the N tokens, of two rows, that are the same
  saved      whether transformers gets bit-equal logits from what jopd saves
"""

import argparse
import json
import os
import tempfile
import warnings

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('HF_HUB_OFFLINE', '1')
warnings.filterwarnings('ignore')  # torch's and transformers'

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from jopd import sharding
from jopd.models import hf
from jopd.rollout.engine import make_generate
from jopd.rollout.stop_criteria import make_stops

ROWS, VOCAB = 2, 512
SIZES = dict(
  vocab_size=VOCAB,
  hidden_size=64,
  num_hidden_layers=4,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=24,
  intermediate_size=96,
  max_position_embeddings=4096,
  initializer_range=0.15,
  eos_token_id=None,
  rope_parameters={'rope_type': 'default', 'rope_theta': 50_000.0},
)
LLAMA3 = dict(
  rope_type='llama3',
  rope_theta=5_000.0,
  factor=8.0,
  low_freq_factor=1.0,
  high_freq_factor=4.0,
  original_max_position_embeddings=128,
)
YARN = dict(
  rope_type='yarn',
  rope_theta=5_000.0,
  factor=4.0,
  original_max_position_embeddings=256,
)
LINEAR = dict(rope_type='linear', rope_theta=5_000.0, factor=3.0)
LOCAL = dict(rope_type='default', rope_theta=700.0)
EXPERTS = dict(moe_intermediate_size=32, num_experts=16, num_experts_per_tok=4)

# What is shown; class of the config; class of the model; fields.
CASES = (
  ('Llama, llama3 scaling', 'Llama', 'Llama', dict(rope_parameters=LLAMA3)),
  ('Llama, linear scaling', 'Llama', 'Llama', dict(rope_parameters=LINEAR)),
  ('Mistral, window 100', 'Mistral', 'Mistral', dict(sliding_window=100)),
  ('Qwen2', 'Qwen2', 'Qwen2', {}),
  (
    'Qwen2, window 100 in two of four layers',
    'Qwen2',
    'Qwen2',
    dict(use_sliding_window=True, sliding_window=100, max_window_layers=2),
  ),
  ('Qwen3', 'Qwen3', 'Qwen3', dict(tie_word_embeddings=True)),
  ('Qwen3, yarn', 'Qwen3', 'Qwen3', dict(rope_parameters=YARN)),
  (
    'Qwen3-MoE, 4 of 16 experts',
    'Qwen3Moe',
    'Qwen3Moe',
    dict(norm_topk_prob=True, **EXPERTS),
  ),
  (
    'Gemma 3, window 100 in three of four layers',
    'Gemma3Text',
    'Gemma3',
    dict(
      sliding_window=100,
      layer_types=[*['sliding_attention'] * 3, 'full_attention'],
      query_pre_attn_scalar=20,
      rope_parameters=dict(full_attention=LINEAR, sliding_attention=LOCAL),
    ),
  ),
)


def make_oracle(config, model, fields):
  """A random model of transformers, with random norms and biases."""
  torch.manual_seed(0)
  config = getattr(transformers, f'{config}Config')(**(SIZES | fields))
  oracle = getattr(transformers, f'{model}ForCausalLM')(config)
  with torch.no_grad():
    for name, param in oracle.named_parameters():
      if 'norm' in name or 'bias' in name:
        param.add_(0.3 * torch.randn_like(param))
  return oracle.eval()


def torch_logits(oracle, tokens):
  with torch.no_grad():
    return oracle(torch.tensor(tokens)).logits.numpy()


def compare(name, config, model, fields, length, new):
  """One row of the table."""
  oracle = make_oracle(config, model, fields)
  tokens = np.random.default_rng(0).integers(0, VOCAB, (ROWS, length))
  want = torch_logits(oracle, tokens)
  with tempfile.TemporaryDirectory() as folder:
    oracle.save_pretrained(f'{folder}/theirs')
    ours, params = hf.load(f'{folder}/theirs')
    hf.save(f'{folder}/ours', ours, params)
    again = transformers.AutoModelForCausalLM.from_pretrained(f'{folder}/ours')
    saved = bool((torch_logits(again.eval(), tokens) == want).all())
  hidden, _ = jax.jit(ours.apply)(params, jnp.asarray(tokens))
  got = np.asarray(hidden @ ours.head(params).T)

  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  rollout = make_generate(ours, mesh, max_new_tokens=new)(
    params,
    tokens.astype(np.int32),
    np.full(ROWS, length, np.int32),
    jax.random.key(0),
    stops=make_stops(()),
    temperature=0,
  )
  theirs = oracle.generate(
    torch.tensor(tokens),
    attention_mask=torch.ones_like(torch.tensor(tokens)),
    max_new_tokens=new,
    do_sample=False,
    pad_token_id=0,
  ).numpy()[:, length:]
  return {
    'family': name,
    'length': length,
    'logits': float(np.abs(got - want).max()),
    'of': float(np.abs(want).max()),
    'greedy': float((np.asarray(rollout.response) == theirs).mean()),
    'new': new,
    'saved': saved,
  }


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--length', type=int, default=1024)
  parser.add_argument('--new', type=int, default=64)
  parser.add_argument('--json', action='store_true')
  flags = parser.parse_args()
  transformers.utils.logging.disable_progress_bar()
  transformers.utils.logging.set_verbosity_error()
  if not flags.json:
    print('| family | length | logits differ by | of | greedy | saved |')
    print('|---|---|---|---|---|---|')
  for case in CASES:
    row = compare(*case, flags.length, flags.new)
    if flags.json:
      print(json.dumps(row), flush=True)
      continue
    same = f'{row["greedy"]:.3f} of {row["new"]}'
    print(
      f'| {row["family"]} | {row["length"]} | {row["logits"]:.1e} | '
      f'{row["of"]:.1f} | {same} | {"equal" if row["saved"] else "differs"} |',
      flush=True,
    )


if __name__ == '__main__':
  main()
