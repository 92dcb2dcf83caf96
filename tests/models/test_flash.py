"""Kernels of attention against the plain one, and on a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jopd import sharding
from jopd.models import flash

B, L, H, K, N = 2, 150, 4, 2, 64
SCALE = 0.2


@pytest.fixture(scope='module')
def inputs():
  keys = jax.random.split(jax.random.key(0), 4)
  shapes = (B, L, H, N), (B, K, L, N), (B, K, L, N), (B, L, H, N)
  return [
    jax.random.normal(k, shape) for k, shape in zip(keys, shapes, strict=True)
  ]


def _run(attend, inputs):
  """What it returns, and its gradients under some loss."""
  *qkv, factor = inputs
  loss = lambda *qkv: jnp.sum(attend(*qkv, scale=SCALE) * factor)
  return attend(*qkv, scale=SCALE), jax.jit(jax.grad(loss, (0, 1, 2)))(*qkv)


# Kills: padding that is seen, heads grouped otherwise, a scale or a mask left
# out, a width below a TPU's lanes that is not cut off again.
def test_the_tpu_kernel_is_the_plain_attention(inputs):
  interpreted = lambda *qkv, scale: flash.splash(
    *qkv, scale=scale, interpret=True
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5),
    _run(interpreted, inputs),
    _run(flash.plain, inputs),
  )


def test_each_platform_has_its_own():
  assert flash.attend_on('tpu') is flash.splash
  assert flash.attend_on('gpu') is flash.cudnn
  assert flash.attend_on('cpu') is flash.plain


# Kills: float32 refused on a GPU, where cuDNN does not know it.
def test_float32_on_a_gpu_is_plain(inputs):
  *qkv, _ = inputs
  got = flash.cudnn(*qkv, scale=SCALE)
  np.testing.assert_array_equal(got, flash.plain(*qkv, scale=SCALE))


# Kills: axes of keys and queries mixed up, which only other numbers would show.
def test_cudnn_is_called_with_its_own_layout(inputs, monkeypatch):
  real, seen = jax.nn.dot_product_attention, {}

  def stand_in(*qkv, implementation, **settings):
    seen['implementation'] = implementation
    return real(*qkv, implementation='xla', **settings)

  monkeypatch.setattr(jax.nn, 'dot_product_attention', stand_in)
  qkv = [x.astype(jnp.bfloat16) for x in inputs[:3]]
  got = flash.cudnn(*qkv, scale=SCALE)
  want = flash.plain(*(x.astype(jnp.float32) for x in qkv), scale=SCALE)
  np.testing.assert_allclose(got.astype(jnp.float32), want, atol=0.03)
  assert seen['implementation'] == 'cudnn'


# Kills: heads of one device that meet keys of another.
@pytest.mark.parametrize('sizes', [(4, 2, 1), (2, 2, 2)])
def test_rows_and_heads_are_divided_over_a_mesh(sizes, inputs):
  mesh = sharding.make_mesh(*sizes)
  rows = [jnp.tile(x, (4, 1, 1, 1)) for x in inputs]
  scale = lambda x: x * jnp.linspace(0.5, 1.5, len(x))[:, None, None, None]
  rows = [scale(x) for x in rows]
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5),
    _run(sharding.by_heads(mesh)(flash.plain), rows),
    _run(flash.plain, rows),
  )
