"""How the arrays of a layer are declared: one name per axis decides all."""

from flax import nnx
import jax
import jax.numpy as jnp

from jopd.models.architecture import DecoderConfig

ACTIVATIONS = {'silu': jax.nn.silu, 'gelu_tanh': jax.nn.gelu}


def weight(config: DecoderConfig, rngs: nnx.Rngs, *axes: str) -> nnx.Param:
  """A random weight; its logical axes decide both its shape and sharding."""
  shape = tuple(config.size(axis) for axis in axes)
  values = jax.random.normal(rngs.params(), shape) * config.init_scale
  return nnx.Param(values, axes=axes)


def bias(config: DecoderConfig, *axes: str) -> nnx.Param:
  """Zeros, likewise."""
  return nnx.Param(jnp.zeros([config.size(axis) for axis in axes]), axes=axes)
