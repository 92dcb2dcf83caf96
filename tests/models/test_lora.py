"""Adapters: what they add, by hand; their gradients; what is never held."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jopd.models import lora
from jopd.models.decoder import DecoderConfig, make_model
from jopd.models.int8 import dequantize, quantize_params
from jopd.models.lora import Lora, LowRank

CONFIG = DecoderConfig(
  vocab_size=31,
  layers=2,
  embed=8,
  heads=4,
  kv_heads=2,
  head_dim=6,
  mlp=10,
  qkv_bias=True,
  init_scale=0.3,
)
MODEL = make_model(CONFIG)
LORA = Lora(rank=3, alpha=12.0)  # adds four times a b
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 31, (2, 7)))


def _random(shapes, seed):
  rng = np.random.default_rng(seed)
  draw = lambda s: jnp.asarray(rng.normal(0, 0.3, s.shape), jnp.float32)
  return jax.tree.map(draw, shapes)


@pytest.fixture(scope='module')
def base():
  return _random(jax.eval_shape(MODEL.init, jax.random.key(0)), 1)


@pytest.fixture(scope='module')
def adapters():
  """As after training: b is not zero any more."""
  made = lora.init(MODEL, LORA, jax.random.key(0))
  return _random(made, 2)


def by_hand(matrix, pair, inputs):
  """[*I, *O] + 12 / 3 * a b of one layer, in float64 and by loops."""
  a, b = (np.asarray(pair[name], np.float64) for name in ('a', 'b'))
  a, b = a.reshape(-1, 3), b.reshape(3, -1)
  total = np.array(matrix, np.float64).reshape(len(a), -1)
  assert len(a) == inputs
  for i, o, r in np.ndindex(*total.shape, 3):
    total[i, o] += 4.0 * a[i, r] * b[r, o]
  return total.reshape(matrix.shape)


# Kills: a that is added transposed, alpha without rank, heads that are taken
# for inputs of q or for outputs of o.
@pytest.mark.parametrize(
  'part, name, inputs',
  [
    ('attention', 'q', 8),
    ('attention', 'k', 8),
    ('attention', 'o', 24),
    ('mlp', 'gate', 8),
    ('mlp', 'down', 10),
  ],
)
def test_the_sum_is_that_of_loops(base, adapters, part, name, inputs):
  merged = lora.merge(lora.attach(base, adapters, LORA), jnp.float32)
  for layer in range(2):
    of = lambda tree: jax.tree.map(lambda x: x[layer], tree)  # noqa: B023
    pair = of(adapters['layers'][part][name])
    want = by_hand(of(base['layers'][part][name]), pair, inputs)
    got = merged['layers'][part][name][layer]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
  bias = lambda tree: tree['layers']['attention']['q_bias']
  np.testing.assert_array_equal(bias(merged), bias(base))


# Kills: adapters that disturb what they start from, if only in the last bit;
# two that are drawn alike.
def test_new_adapters_change_nothing(base):
  adapters = lora.init(MODEL, LORA, jax.random.key(5))
  pairs = adapters['layers']['mlp']
  assert (pairs['up']['b'] == 0).all()
  a = np.asarray(pairs['up']['a'])
  assert np.abs(a).max() <= 8**-0.5 and np.ptp(a) > 8**-0.5
  assert (a != pairs['gate']['a']).all()
  apply = jax.jit(MODEL.apply)
  got, _ = apply(lora.attach(base, adapters, LORA), TOKENS)
  np.testing.assert_array_equal(got, apply(base, TOKENS)[0])


# By the chain rule from the gradient of all parameters, d: da = 4 d b^T and
# db = 4 a^T d. Kills: a sum that is computed outside of what is differentiated.
def test_gradients_are_those_of_the_dense_model(base, adapters):
  loss = lambda params: jnp.sum(jnp.sin(MODEL.apply(params, TOKENS)[0]))
  attached = lambda own: lora.attach(base, own, LORA)
  value, got = jax.jit(jax.value_and_grad(lambda own: loss(attached(own))))(
    adapters
  )
  merged = lora.merge(attached(adapters), jnp.float32)
  want, dense = jax.jit(jax.value_and_grad(loss))(merged)
  np.testing.assert_allclose(value, want, rtol=1e-5)
  for part, name in (('attention', 'q'), ('attention', 'o'), ('mlp', 'down')):
    pair = jax.tree.map(np.float64, adapters['layers'][part][name])
    a, b = pair['a'].reshape(2, -1, 3), pair['b'].reshape(2, 3, -1)
    d = np.float64(dense['layers'][part][name])
    d = d.reshape(2, a.shape[1], b.shape[2])
    found = got['layers'][part][name]
    da = 4 * np.einsum('lio,lro->lir', d, b)
    db = 4 * np.einsum('lir,lio->lro', a, d)
    flat = lambda x, like: np.asarray(x).reshape(like.shape)
    np.testing.assert_allclose(flat(found['a'], da), da, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(flat(found['b'], db), db, rtol=1e-3, atol=1e-4)


def test_targets_have_adapters_and_nothing_else(base):
  some = Lora(rank=2, targets=('q', 'down'))
  made = lora.init(MODEL, some, jax.random.key(0))
  shapes = jax.tree.map(lambda x: x.shape, made['layers'])
  assert shapes == {
    'attention': {'q': {'a': (2, 8, 2), 'b': (2, 2, 4, 6)}},
    'mlp': {'down': {'a': (2, 10, 2), 'b': (2, 2, 8)}},
  }
  assert lora.adapter_axes(MODEL, some)['layers']['mlp']['down'] == {
    'a': ('layers', 'mlp', None),
    'b': ('layers', None, 'embed'),
  }
  attached = lora.attach(base, made, some)['layers']['attention']
  assert isinstance(attached['q'], LowRank)
  assert attached['k'] is base['layers']['attention']['k']


@pytest.mark.parametrize(
  'wrong, message',
  [
    (Lora(rank=0), 'rank must be at least 1, got 0'),
    (Lora(rank=1, targets=('q_proj',)), "'q_proj' is not a matrix of a layer"),
    (Lora(rank=1, targets=('embed',)), 'choose from down, gate, k, o, q, up'),
  ],
)
def test_what_cannot_be_adapted_is_refused(wrong, message):
  with pytest.raises(ValueError, match=message):
    lora.adapter_axes(MODEL, wrong)


def test_a_base_in_eight_bits_is_the_rounded_model(base, adapters):
  rounded = quantize_params(base, MODEL.axes)
  wide = dequantize(rounded, jnp.float32)
  apply = jax.jit(MODEL.apply)
  want, _ = apply(lora.attach(wide, adapters, LORA), TOKENS)
  got, _ = apply(lora.attach(rounded, adapters, LORA), TOKENS)
  np.testing.assert_allclose(got, want, atol=1e-4)
  # Without adapters, as a teacher is.
  want, _ = apply(wide, TOKENS)
  np.testing.assert_allclose(apply(rounded, TOKENS)[0], want, atol=1e-4)


# Kills: sums that are taken before the layers, or kept for the backward pass;
# eight bits that are widened all at once; a gradient of what is frozen.
@pytest.mark.parametrize('remat', ['', 'dots', 'full'])
@pytest.mark.parametrize('eight', [False, True], ids=['', 'int8'])
def test_no_second_model_is_held(remat, eight):
  model = make_model(
    DecoderConfig(
      vocab_size=16,
      layers=16,
      embed=64,
      heads=2,
      kv_heads=2,
      head_dim=32,
      mlp=256,
    ),
    remat=remat,
  )
  small = Lora(rank=1)
  tokens = jnp.zeros((1, 8), int)

  def loss(own, base):
    params = lora.attach(base, own, small)
    return jnp.sum(model.apply(params, tokens)[0])

  key = jax.random.key(0)
  base = jax.eval_shape(model.init, key)
  matrices = 4 * sum(x.size for x in jax.tree.leaves(base['layers']))
  if eight:
    base = jax.eval_shape(lambda p: quantize_params(p, model.axes), base)
  own = jax.eval_shape(lambda k: lora.init(model, small, k), key)
  program = jax.jit(jax.grad(loss)).lower(own, base).compile()
  assert program.memory_analysis().temp_size_in_bytes < 0.5 * matrices
