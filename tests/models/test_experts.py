"""Routed experts: against loops, and on a mesh that keeps rows in place."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jopd import sharding
from jopd.models import DecoderConfig, make_model
from jopd.models.blocks import KernelConfig
from jopd.models.experts import mix_experts
from jopd.models.int8 import quantize_params

CONFIG = DecoderConfig(
  vocab_size=48,
  layers=2,
  embed=16,
  heads=4,
  kv_heads=2,
  head_dim=4,
  mlp=12,
  experts=6,
  experts_per_token=2,
  experts_normed=True,
  qk_norm=True,
  family='qwen3_moe',
)
TOKENS = np.random.default_rng(0).integers(0, 48, (8, 10))


def _random(shapes, seed=0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda s: jnp.asarray(0.4 * rng.normal(size=s.shape), jnp.float32), shapes
  )


@pytest.fixture(scope='module')
def params():
  shapes = jax.eval_shape(make_model(CONFIG).init, jax.random.key(0))
  return _random(shapes)


def _weights(experts, width, inner):
  shapes = [
    (width, experts),
    (experts, width, inner),
    (experts, width, inner),
    (experts, inner, width),
  ]
  return _random([jax.ShapeDtypeStruct(shape, 'float32') for shape in shapes])


@pytest.mark.parametrize('normed', [False, True])
def test_experts_equal_loops_in_float64(normed):
  # Kills: a token given to the experts of its neighbour in the sorted order;
  # probabilities normalized before the choice; an expert without tokens.
  x = _random(jax.ShapeDtypeStruct((2, 5, 4), 'float32'), seed=1)
  weights = _weights(7, 4, 3)
  router, gate, up, down = (np.asarray(w, float) for w in weights)
  want = np.zeros(x.shape)
  for b, t in np.ndindex(2, 5):
    token = np.asarray(x[b, t], float)
    likelihood = np.exp(token @ router)
    likelihood /= likelihood.sum()
    chosen = np.argsort(-likelihood)[:3]
    total = likelihood[chosen].sum() if normed else 1
    for e in chosen:
      opened = token @ gate[e]
      hidden = opened / (1 + np.exp(-opened)) * (token @ up[e])
      want[b, t] += likelihood[e] / total * (hidden @ down[e])
  got = jax.jit(mix_experts, static_argnames=('chosen', 'normed'))(
    x, weights, chosen=3, normed=normed
  )
  np.testing.assert_allclose(got, want, atol=1e-5, rtol=0)


def test_the_gradient_is_that_of_every_expert_masked():
  # Kills: a product that differentiates in one argument only; a choice that
  # passes gradient to experts that were not chosen.
  x = _random(jax.ShapeDtypeStruct((2, 5, 4), 'float32'), seed=1)
  weights = _weights(6, 4, 3)

  def masked(x, weights):
    router, gate, up, down = weights
    likelihood = jax.nn.softmax(x @ router)
    least = jnp.sort(likelihood)[..., -2:-1]
    likelihood = jnp.where(likelihood < least, 0, likelihood)
    hidden = jax.nn.silu(jnp.einsum('bld,edf->blef', x, gate))
    hidden *= jnp.einsum('bld,edf->blef', x, up)
    return jnp.einsum('blef,efd,ble->bld', hidden, down, likelihood)

  def sorted_by_expert(x, weights):
    return mix_experts(x, weights, chosen=2, normed=False)

  def gradient(f):
    loss = lambda *args: jnp.sum(jnp.sin(f(*args)))
    return jax.jit(jax.grad(loss, argnums=(0, 1)))(x, weights)

  jax.tree.map(
    lambda got, want: np.testing.assert_allclose(got, want, atol=1e-5, rtol=0),
    gradient(sorted_by_expert),
    gradient(masked),
  )


def _on(mesh):
  return make_model(
    CONFIG,
    remat='full',
    constrain=sharding.constrain_batch(mesh),
    kernels=KernelConfig(sharding.by_rows(mesh)),
  )


def _loss(model):
  return lambda p, tokens: jnp.sum(jnp.sin(model.apply(p, tokens)[0]))


@pytest.mark.parametrize('sizes', [(8, 1, 1), (2, 2, 2)])
def test_a_mesh_computes_what_one_device_does(params, sizes):
  # Kills: gradients of weights that miss the rows of other devices; experts
  # that one device sorts for the tokens of all.
  mesh = sharding.make_mesh(*sizes)
  shardings = sharding.param_shardings(mesh, _on(mesh).axes, params)
  placed = jax.device_put(params, shardings)
  rows = jax.device_put(TOKENS, sharding.batch_sharding(mesh))
  step = jax.jit(jax.value_and_grad(_loss(_on(mesh))))
  want = jax.jit(jax.value_and_grad(_loss(make_model(CONFIG))))(params, TOKENS)
  got = step(placed, rows)
  jax.tree.map(
    lambda g, w: np.testing.assert_allclose(g, w, atol=1e-4, rtol=0), got, want
  )


def test_no_token_leaves_its_device(params):
  # Kills: one sort of the tokens of all devices, which collects them all; the
  # compiler does so when left alone.
  mesh = sharding.make_mesh(data=4, fsdp=2)
  alone = make_model(CONFIG, constrain=sharding.constrain_batch(mesh))
  shardings = sharding.param_shardings(mesh, alone.axes, params)
  rows = sharding.batch_sharding(mesh)

  def collects_tokens(model):
    step = jax.jit(jax.grad(_loss(model)), in_shardings=(shardings, rows))
    text = step.lower(params, TOKENS).compile().as_text()
    found = re.findall(r'= \w+\[([\d,]+)\]\S* all-(?:gather|to-all)', text)
    sizes = {int(n) for dims in found for n in dims.split(',')}
    # 80 tokens that choose 2 experts each.
    return bool(sizes & {80, 160})

  assert collects_tokens(alone)
  assert not collects_tokens(_on(mesh))


def test_decoding_on_a_mesh_equals_one_device(params):
  # Kills: a cached step that sees the experts of one device's rows only.
  mesh = sharding.make_mesh(2, 2, 2)
  model, start = make_model(CONFIG), np.full(8, 9)

  def decode(model, params):
    cache = model.init_cache(8, 10, jnp.float32)
    _, cache = jax.jit(model.apply)(params, TOKENS[:, :9], None, cache)
    return jax.jit(model.apply)(params, TOKENS[:, 9:], start, cache)[0]

  shardings = sharding.param_shardings(mesh, model.axes, params)
  got = decode(_on(mesh), jax.device_put(params, shardings))
  np.testing.assert_allclose(got, decode(model, params), atol=1e-5, rtol=0)
  whole, _ = jax.jit(model.apply)(params, TOKENS)
  np.testing.assert_allclose(got[:, 0], whole[:, 9], atol=1e-5, rtol=0)


def test_each_expert_has_scales_of_its_own_in_eight_bits(params):
  # Kills: one scale for the outputs of all experts; a router that is rounded.
  rounded = quantize_params(params, make_model(CONFIG).axes)
  mlp = rounded['layers']['mlp']
  assert mlp['gate'].scale.shape == (2, 6, 1, 12)
  assert mlp['up'].scale.shape == (2, 6, 1, 12)
  assert mlp['down'].scale.shape == (2, 6, 1, 16)
  assert mlp['router'] is params['layers']['mlp']['router']


@pytest.mark.parametrize('chosen', [0, 7])
def test_an_impossible_choice_is_refused(chosen):
  with pytest.raises(ValueError, match=r'must be in .1, experts = 6.'):
    DecoderConfig(
      vocab_size=8,
      layers=1,
      embed=8,
      heads=2,
      kv_heads=1,
      head_dim=4,
      mlp=8,
      experts=6,
      experts_per_token=chosen,
    )
