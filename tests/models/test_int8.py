"""Quantization: its error, the arrays that it rounds, and its axes."""

import jax
import jax.numpy as jnp
import numpy as np

from jopd.models.decoder import DecoderConfig, make_model
from jopd.models.int8 import Int8, dequantize, quantize, quantize_params

MODEL = make_model(
  DecoderConfig(
    vocab_size=11,
    layers=3,
    embed=8,
    heads=4,
    kv_heads=2,
    head_dim=6,
    mlp=10,
    qkv_bias=True,
    qk_norm=True,
  )
)


# Kills: a scale of the wrong axis, truncation instead of rounding, 128 steps.
def test_no_number_is_further_off_than_half_a_step():
  rng = np.random.default_rng(0)
  # Columns of very unlike size: one scale for all would lose the small ones.
  array = rng.normal(size=(50, 4)) * [1e-6, 1.0, 30.0, 1e4]
  rounded = quantize(jnp.asarray(array, jnp.float32), shared=(0,))
  step = np.abs(array).max(axis=0, keepdims=True) / 127
  off = np.abs(np.asarray(dequantize(rounded, jnp.float32), float) - array)
  assert rounded.values.dtype == jnp.int8 and rounded.scale.shape == (1, 4)
  assert (off <= 0.501 * step).all()
  assert (off.max(axis=0) > 0.4 * step).all()


def test_a_column_of_zeros_stays_one():
  array = jnp.array([[0.0, 1.0], [0.0, -2.0]])
  back = dequantize(quantize(array, shared=(0,)), jnp.float32)
  np.testing.assert_allclose(back, array, atol=0.01)
  assert (back[:, 0] == 0).all()


# A scale per output of each product, layer by layer; the rest as it was. Kills:
# rounding biases and norms, an embedding table that would be widened whole.
def test_matrices_have_a_scale_per_output():
  params = MODEL.init(jax.random.key(0))
  rounded = quantize_params(params, MODEL.axes)
  found = {
    name: x.scale.shape
    for layer in ('attention', 'mlp')
    for name, x in rounded['layers'][layer].items()
    if isinstance(x, Int8)
  }
  assert found == {
    'q': (3, 1, 4, 6),
    'k': (3, 1, 2, 6),
    'v': (3, 1, 2, 6),
    'o': (3, 1, 1, 8),
    'gate': (3, 1, 10),
    'up': (3, 1, 10),
    'down': (3, 1, 8),
  }
  for name in ('embed', 'head'):
    np.testing.assert_array_equal(rounded[name], params[name])
  bias = lambda tree: tree['layers']['attention']['q_bias']
  np.testing.assert_array_equal(bias(rounded), bias(params))


# Kills: widening all layers before the first one runs.
def test_a_forward_pass_widens_one_layer_at_a_time():
  model = make_model(
    DecoderConfig(
      vocab_size=16,
      layers=16,
      embed=64,
      heads=2,
      kv_heads=2,
      head_dim=32,
      mlp=256,
    )
  )
  rounded = lambda key: quantize_params(model.init(key), model.axes)
  shapes = jax.eval_shape(rounded, jax.random.key(0))
  matrices = 4 * sum(x.size for x in jax.tree.leaves(shapes['layers']))
  tokens = jnp.zeros((1, 8), int)
  run = jax.jit(lambda params: model.apply(params, tokens)[0])
  program = run.lower(shapes).compile()
  assert program.memory_analysis().temp_size_in_bytes < 0.2 * matrices
