"""Eight fake devices: sizes, shardings, and what cannot be divided."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import pytest

from jopd import sharding

AXES = {'q': ('layers', 'embed', 'heads', 'head_dim'), 'scale': (None,)}
SHAPES = {
  'q': jax.ShapeDtypeStruct((2, 8, 4, 6), jnp.float32),
  'scale': jax.ShapeDtypeStruct((8,), jnp.float32),
}


def test_a_size_of_minus_one_takes_the_devices_that_are_left():
  mesh = sharding.make_mesh(data=-1, tensor=2)
  assert dict(mesh.shape) == {'data': 4, 'fsdp': 1, 'tensor': 2}
  # Explicit axes, the default of make_mesh, would refuse a plain gather.
  assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


@pytest.mark.parametrize(
  ('sizes', 'message'),
  [
    ((3, 1, 1), 'data = 3, fsdp = 1, tensor = 1 does not use the 8 devices'),
    ((4, 4, 1), 'does not use the 8 devices'),
    ((2, 2, 1), 'with product 8'),
    ((-1, 3, 1), 'does not use the 8 devices'),
    ((-1, -1, 1), '-1 for at most one'),
    ((0, 1, 1), 'must be positive'),
  ],
)
def test_a_mesh_that_does_not_fit_is_refused(sizes, message):
  with pytest.raises(ValueError, match=message):
    sharding.make_mesh(*sizes)


def test_each_logical_axis_goes_where_the_table_says():
  mesh = sharding.make_mesh(2, 2, 2)
  got = sharding.param_shardings(mesh, AXES, SHAPES)
  assert got['q'] == NamedSharding(mesh, P(None, 'fsdp', 'tensor', None))
  assert got['scale'] == NamedSharding(mesh, P(None))


def test_an_axis_that_cannot_be_divided_names_the_sizes_that_can():
  mesh = sharding.make_mesh(tensor=8)
  shapes = {'k': jax.ShapeDtypeStruct((16, 2, 6), jnp.float32)}
  axes = {'k': ('embed', 'kv_heads', 'head_dim')}
  message = r'kv_heads = 2 cannot be divided over tensor = 8: choose .*\{1, 2\}'
  with pytest.raises(ValueError, match=message):
    sharding.param_shardings(mesh, axes, shapes)


def test_an_unknown_logical_axis_is_named():
  mesh = sharding.make_mesh(data=8)
  with pytest.raises(ValueError, match="unknown logical axis 'head'"):
    sharding.param_shardings(
      mesh, {'scale': ('head',)}, {'scale': SHAPES['scale']}
    )


def test_rows_must_divide_evenly():
  mesh = sharding.make_mesh(2, 2, 2)
  sharding.check_batch(mesh, 12)
  with pytest.raises(
    ValueError, match=r'10 rows .* = 4: choose a multiple of 4'
  ):
    sharding.check_batch(mesh, 10)


def test_moments_lie_where_their_parameters_do():
  # Kills: `jit(tx.init)` without out_shardings, all on one device; a factored
  # moment of Adafactor with the sharding of the matrix.
  mesh = sharding.make_mesh(2, 2, 2)
  shardings = sharding.param_shardings(mesh, AXES, SHAPES)
  params = jax.tree.map(
    lambda s, where: jax.device_put(jnp.ones(s.shape), where), SHAPES, shardings
  )
  tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
  where = sharding.optimizer_shardings(tx, params, shardings)
  state = jax.jit(tx.init, out_shardings=where)(params)
  adam = state[1][0]
  assert adam.mu['q'].sharding == shardings['q']
  assert adam.nu['q'].addressable_shards[0].data.shape == (2, 4, 2, 6)
  assert adam.count.sharding.is_fully_replicated

  tx = optax.adafactor(1e-3, min_dim_size_to_factor=2)
  where = sharding.optimizer_shardings(tx, params, shardings)
  state = jax.jit(tx.init, out_shardings=where)(params)
  want = jax.tree.map(np.shape, tx.init(params))
  assert jax.tree.map(np.shape, state) == want


def test_a_constraint_keeps_the_value_and_divides_the_rows():
  mesh = sharding.make_mesh(2, 2, 2)
  x = jnp.arange(48.0).reshape(8, 2, 3)
  got = jax.jit(sharding.constrain_batch(mesh))(x)
  np.testing.assert_array_equal(got, x)
  assert got.sharding.is_equivalent_to(sharding.batch_sharding(mesh), 3)


# Kills: products of slices that are added up, a gradient of the whole matrix on
# every device, an axis of `tensor` that is gathered along.
def test_a_layer_is_gathered_for_its_products_and_its_gradient_divided():
  mesh = sharding.make_mesh(1, 4, 2)
  axes = {'up': ('embed', 'mlp'), 'scale': (None,)}
  weights = {'up': jnp.arange(64.0).reshape(8, 8), 'scale': jnp.ones(8)}
  where = sharding.param_shardings(mesh, axes, weights)
  divided = jax.tree.map(jax.device_put, weights, where)
  x = jnp.ones((4, 8))

  def loss(weights):
    weights = sharding.gather_layer(mesh)(weights, axes)
    return jnp.sum(jnp.sin(x @ weights['up'] * weights['scale'][None]))

  gradient = jax.jit(jax.grad(loss))
  got = gradient(divided)
  want = jax.grad(lambda w: jnp.sum(jnp.sin(x @ w['up'] * w['scale'][None])))(
    weights
  )
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5), got, want)
  assert got['up'].sharding.is_equivalent_to(where['up'], 2)
  text = gradient.lower(divided).compile().as_text()
  assert 'f32[8,4]{1,0} all-gather' in text


def test_without_fsdp_a_layer_stays_where_it_is():
  weights, axes = {'up': jnp.ones((8, 8))}, {'up': ('embed', 'mlp')}
  gather = sharding.gather_layer(sharding.make_mesh(4, 1, 2))
  assert gather(weights, axes) is weights
