"""The decoder on its own terms: what sees what, with and without a cache."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jopd import sharding
from jopd.models import DecoderConfig, make_model
from jopd.models.attention import causal_attention, write_cache

CONFIG = DecoderConfig(
  vocab_size=50,
  layers=2,
  embed=16,
  heads=4,
  kv_heads=2,
  head_dim=6,
  mlp=20,
  qkv_bias=True,
  qk_norm=True,
  init_scale=0.3,
)
MODEL = make_model(CONFIG)
APPLY = jax.jit(MODEL.apply)
TOKENS = np.random.default_rng(0).integers(0, 50, (3, 12))


@pytest.fixture(scope='module')
def params():
  # Compiling init would take longer than most tests here.
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(MODEL.init, jax.random.key(0))
  return jax.tree.map(
    lambda s: jnp.asarray(0.3 * rng.normal(size=s.shape), jnp.float32), shapes
  )


def _close(got, want, atol=1e-5):
  jax.tree.map(
    lambda g, w: np.testing.assert_allclose(g, w, atol=atol, rtol=0), got, want
  )


def test_attention_equals_loops_in_float64():
  # Kills: scaling by sqrt(D), query head h reading key head h % K, a mask
  # that leaves out the query's own slot, or the first slot of a window.
  rng = np.random.default_rng(1)
  batch, length, slots, heads, kv_heads, size = 2, 3, 7, 4, 2, 6
  q = rng.normal(size=(batch, length, heads, size))
  k = rng.normal(size=(batch, kv_heads, slots, size))
  v = rng.normal(size=(batch, kv_heads, slots, size))
  last = np.array([[0, 3, 6], [2, 2, 5]])
  ours = [jnp.asarray(x, jnp.float32) for x in (q, k, v)]
  for first in (None, np.array([[0, 1, 6], [-3, 2, 4]])):
    want = np.zeros_like(q)
    for b, t, h in np.ndindex(batch, length, heads):
      kv = h // (heads // kv_heads)
      begin = 0 if first is None else max(first[b, t], 0)
      weights = {
        s: math.exp(q[b, t, h] @ k[b, kv, s] / math.sqrt(size))
        for s in range(begin, last[b, t] + 1)
      }
      for s, weight in weights.items():
        want[b, t, h] += weight / sum(weights.values()) * v[b, kv, s]
    bound = None if first is None else jnp.asarray(first)
    got = causal_attention(*ours, jnp.asarray(last), bound)
    np.testing.assert_allclose(got, want, atol=1e-5, rtol=0)


def test_a_position_depends_on_the_past_and_on_nothing_else(params):
  # Kills: a mask off by one in either direction, rows that see each other.
  def at(embedded, row, position):
    # Tokens 0..35 are distinct, so that row i of the table is one token.
    table = {**params, 'embed': embedded}
    return MODEL.apply(table, jnp.arange(36).reshape(3, 12))[0][
      row, position
    ].sum()

  gradient = jax.jit(jax.grad(at))(params['embed'], 1, 5)
  moved = np.abs(gradient).max(axis=-1) > 0
  np.testing.assert_array_equal(np.flatnonzero(moved), np.arange(12, 18))


def test_junk_on_the_right_changes_no_real_position(params):
  # Kills: full attention without a mask; NaN out of ids beyond the table.
  junk = TOKENS.copy()
  junk[:, 7:] = [[49], [10_000], [-3]]
  want, _ = APPLY(params, TOKENS)
  got, _ = APPLY(params, junk)
  np.testing.assert_array_equal(got[:, :7], want[:, :7])


@pytest.mark.parametrize('remat', ['dots', 'full'])
def test_remat_changes_neither_values_nor_gradients(params, remat):
  # Kills: a checkpoint that drops the layer's result or its weights.
  def loss(model):
    return lambda p: jnp.sum(jnp.sin(model.apply(p, jnp.asarray(TOKENS))[0]))

  want = jax.jit(jax.value_and_grad(loss(MODEL)))(params)
  remat = make_model(CONFIG, remat=remat)
  got = jax.jit(jax.value_and_grad(loss(remat)))(params)
  _close(got, want, atol=1e-4)
  # It does recompute, and only when asked.
  text = str(jax.make_jaxpr(loss(remat))(params))
  assert 'checkpoint' in text or 'remat' in text
  assert 'checkpoint' not in str(jax.make_jaxpr(loss(MODEL))(params))


# Kills: a policy that keeps what it should not, and names in the wrong order.
def test_less_is_kept_from_one_remat_to_the_next():
  config = dataclasses.replace(CONFIG, layers=8)
  tokens = jnp.zeros((4, 64), int)

  def kept(remat):
    model = make_model(config, remat=remat)
    loss = lambda p: jnp.sum(model.apply(p, tokens)[0])
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    program = jax.jit(jax.grad(loss)).lower(shapes).compile()
    return program.memory_analysis().temp_size_in_bytes

  nothing, dots, full = kept(''), kept('dots'), kept('full')
  assert dots < 0.7 * nothing and full < 0.7 * dots
  with pytest.raises(ValueError, match="remat is 'ful': choose from"):
    make_model(config, remat='ful')


def test_prefill_then_decode_equals_the_whole_row(params):
  # Rows of different length in one batch, junk beyond each: a sampler's life.
  # Kills: one position for all rows; junk of the prefill that stays visible.
  lengths, slots, steps = np.array([2, 8, 5]), 8, 4
  want, _ = APPLY(params, TOKENS)
  prompt = np.where(np.arange(slots) < lengths[:, None], TOKENS[:, :slots], 49)
  cache = MODEL.init_cache(3, slots + steps, jnp.float32)
  hidden, cache = APPLY(params, prompt, None, cache)
  for row, length in enumerate(lengths):
    _close(hidden[row, :length], want[row, :length])
  rows = np.arange(3)
  for step in range(steps):
    token = TOKENS[rows, lengths + step][:, None]
    hidden, cache = APPLY(params, token, lengths + step, cache)
    _close(hidden[:, 0], want[rows, lengths + step])


def test_windows_hold_layer_by_layer_and_through_the_cache(params):
  # Two layers, the first of which sees 3 positions: what is further away
  # reaches a token through the second layer only. Kills: one window for all
  # layers, a window counted in slots of the block instead of positions.
  sliding = dataclasses.replace(CONFIG, window=3, sliding=(True, False))
  both = dataclasses.replace(CONFIG, window=3, sliding=(True, True))
  lengths = np.array([4, 8, 6])

  def influences(config):
    def last(table):
      tokens = jnp.arange(36).reshape(3, 12)
      model = make_model(config)
      return model.apply({**params, 'embed': table}, tokens)[0][0, 11].sum()

    gradient = jax.jit(jax.grad(last))(params['embed'])[:12]
    return np.flatnonzero(np.abs(gradient).max(axis=-1) > 0)

  np.testing.assert_array_equal(influences(sliding), np.arange(12))
  np.testing.assert_array_equal(influences(both), np.arange(7, 12))
  apply = jax.jit(make_model(sliding).apply)
  want, _ = apply(params, TOKENS)
  cache = MODEL.init_cache(3, 12, jnp.float32)
  _, cache = apply(params, TOKENS[:, :8], None, cache)
  block = np.stack([TOKENS[b, n : n + 4] for b, n in enumerate(lengths)])
  hidden, _ = apply(params, block, lengths, cache)
  for row, length in enumerate(lengths):
    _close(hidden[row], want[row, length : length + 4])


def test_a_block_of_several_tokens_continues_each_row(params):
  # Kills: a block that sees only itself, or the whole of itself.
  want, _ = APPLY(params, TOKENS)
  cache = MODEL.init_cache(3, 12, jnp.float32)
  _, cache = APPLY(params, TOKENS[:, :8], None, cache)
  lengths = np.array([4, 8, 6])
  block = np.stack([TOKENS[b, n : n + 4] for b, n in enumerate(lengths)])
  hidden, _ = APPLY(params, block, lengths, cache)
  for row, length in enumerate(lengths):
    _close(hidden[row], want[row, length : length + 4])


def test_start_without_a_cache_moves_the_positions(params):
  # Rotary attention depends on differences of positions only, so a shift of
  # all of them changes nothing. Kills: `start` added to the keys only.
  want, _ = APPLY(params, TOKENS)
  got, cache = APPLY(params, TOKENS, jnp.array([0, 5, 100]))
  assert cache is None
  _close(got, want, atol=1e-4)


def test_unstacked_params_compute_the_same(params):
  # Kills: layers in another order.
  cache = MODEL.init_cache(3, 12, jnp.float32)
  want = APPLY(params, TOKENS[:, :8], None, cache)
  unstacked = MODEL.unstack(params)
  got = APPLY(unstacked, TOKENS[:, :8], None, cache)
  jax.tree.map(np.testing.assert_array_equal, got, want)
  assert MODEL.unstack(unstacked) is unstacked


def test_writes_go_to_each_rows_slots_and_beyond_the_end_nowhere():
  # Kills: dynamic_update_slice, which shifts row 2's block to slots 3 and 4.
  cache = jnp.zeros((3, 1, 5, 1))
  new = jnp.arange(1.0, 7.0).reshape(3, 1, 2, 1)
  got = write_cache(cache, new, jnp.array([0, 2, 4]))
  want = [[1, 2, 0, 0, 0], [0, 0, 3, 4, 0], [0, 0, 0, 0, 5]]
  np.testing.assert_array_equal(got[:, 0, :, 0], want)


def test_a_write_in_a_loop_copies_no_cache():
  # Kills: a select over all slots (a new buffer of the cache's size).
  cache = jax.ShapeDtypeStruct((8, 2, 512, 16), jnp.float32)

  def loop(cache, start):
    def body(carry):
      step, cache = carry
      new = cache[:, :, :1] + 1
      return step + 1, write_cache(cache, new, start + step)

    return jax.lax.while_loop(lambda c: c[0] < 100, body, (0, cache))[1]

  start = jax.ShapeDtypeStruct((8,), jnp.int32)
  program = jax.jit(loop, donate_argnums=0).lower(cache, start).compile()
  memory = program.memory_analysis()
  assert memory.alias_size_in_bytes >= 4 * cache.size
  assert memory.temp_size_in_bytes < cache.size


def test_decoding_on_a_mesh_moves_no_weights(params):
  # Kills: a residual stream pinned to its rows while decoding, for which every
  # matrix is collected from fsdp at every token.
  mesh = sharding.make_mesh(fsdp=8)
  model = make_model(CONFIG, constrain=sharding.constrain_batch(mesh))
  rows = sharding.batch_sharding(mesh)
  shardings = sharding.param_shardings(mesh, model.axes, params)
  step = jax.jit(model.apply, in_shardings=(shardings, rows, rows, rows))
  tokens, start = np.zeros((8, 1), np.int32), np.zeros(8, np.int32)
  prefill = step.lower(params, tokens, None, model.init_cache(8, 4, 'float32'))
  decode = step.lower(params, tokens, start, model.init_cache(8, 4, 'float32'))
  matrices = [
    [n for n in x.shape[1:] if n > 1]
    for x in jax.tree.leaves(params['layers'])
    if x.ndim > 2
  ]

  def collected(lowered):
    text = lowered.compile().as_text()
    found = re.findall(r'= \w+\[([\d,]+)\]\S* all-gather', text)
    shapes = [[int(n) for n in dims.split(',') if n != '1'] for dims in found]
    return [shape for shape in shapes if shape in matrices]

  assert collected(prefill)
  assert not collected(decode)


def test_making_a_model_allocates_nothing_even_at_32b():
  # Kills: initialising the weights to find out their shapes.
  config = DecoderConfig(
    vocab_size=151_936,
    layers=64,
    embed=5120,
    heads=64,
    kv_heads=8,
    head_dim=128,
    mlp=25_600,
    qk_norm=True,
  )
  model = make_model(config)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
  assert count == 32_762_123_264  # Qwen3-32B: "32.8B"
  assert shapes['layers']['attention']['q'].shape == (64, 5120, 64, 128)


def test_every_array_declares_one_logical_axis_per_dimension(params):
  # Kills: axes of a layer without the leading 'layers'.
  def check(names, array):
    assert len(names) == array.ndim
    for name, size in zip(names, array.shape, strict=True):
      assert name is None or CONFIG.size(name) == size

  jax.tree.map(
    check, MODEL.axes, params, is_leaf=lambda leaf: isinstance(leaf, tuple)
  )


def test_fresh_weights_have_the_scale_of_the_config():
  # Kills: layers that share one key; a scale divided by the fan-in.
  params = jax.jit(MODEL.init)(jax.random.key(0))
  up = np.asarray(params['layers']['mlp']['up'])
  assert abs(up.std() / 0.3 - 1) < 0.1
  assert abs(np.corrcoef(up[0].ravel(), up[1].ravel())[0, 1]) < 0.2
  assert params['embed'].dtype == jnp.float32


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (dict(kv_heads=3), 'heads = 4 is not a multiple of kv_heads = 3'),
    (dict(head_dim=5), 'head_dim = 5 is odd'),
    (dict(layers=0), 'layers = 0 must be at least 1'),
    (dict(sliding=(True,)), 'sliding has 1 entries for 2 layers'),
    (dict(window=8), 'window = 8, but sliding is true for 0'),
    (dict(sliding=(True, False)), 'window = None, but sliding is true for 1'),
    (dict(window=0, sliding=(True, True)), 'window = 0 must be at least 1'),
  ],
)
def test_impossible_sizes_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(CONFIG, **change)
