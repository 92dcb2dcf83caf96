"""The parts of a decoder layer: norms, attention, feed-forward.

All families share them; a `DecoderConfig` selects the parts.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jopd.models.architecture import ACTIVATIONS, DecoderConfig, bias, weight
from jopd.models.attention import causal_attention, write_cache
from jopd.models.experts import ByRows, Experts
from jopd.models.flash import Attend, plain
from jopd.models.rope import rotate


class Layer(NamedTuple):
  """Constants that differ between layers.

  Attributes:
    frequency: [N/2], rotary angle per position of each pair of a head.
    window: positions that a query attends to, with its own; None for all.
  """

  frequency: Float[Array, ' half']
  window: Int[Array, ''] | int | None = None


class KernelConfig(NamedTuple):
  """Implementations that depend on the devices.

  Attributes:
    by_rows: wraps experts so that each device sorts its own tokens.
    attend: attention over whole sequences, without cache and window.
    gather: (weights of a layer, their logical axes) -> the weights, gathered
      for the products.
  """

  by_rows: ByRows = lambda f: f
  attend: Attend = plain
  gather: Callable[[Any, Any], Any] = lambda weights, axes: weights


DEFAULT_KERNELS = KernelConfig()


class RMSNorm(nnx.Module):
  """x / sqrt(mean(x^2) + eps) * scale, with float32 statistics.

  Centered norms multiply by 1 + scale, and round only after it.
  """

  def __init__(self, config: DecoderConfig, size: int):
    first = jnp.zeros if config.centered_norms else jnp.ones
    self.scale = nnx.Param(first(size), axes=(None,))
    self.config = config

  def __call__(self, x: Float[Array, '*B D']) -> Float[Array, '*B D']:
    wide = x.astype(jnp.float32)
    square = jnp.mean(wide * wide, axis=-1, keepdims=True)
    normed = wide * jax.lax.rsqrt(square + self.config.norm_eps)
    scale = self.scale.reshape(*[1] * (x.ndim - 1), -1)
    if self.config.centered_norms:
      return (normed * (1 + scale.astype(jnp.float32))).astype(x.dtype)
    return normed.astype(x.dtype) * scale


class Attention(nnx.Module):
  """Grouped-query self-attention with rotary positions."""

  def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
    self.q = weight(config, rngs, 'embed', 'heads', 'head_dim')
    self.k = weight(config, rngs, 'embed', 'kv_heads', 'head_dim')
    self.v = weight(config, rngs, 'embed', 'kv_heads', 'head_dim')
    self.o = weight(config, rngs, 'heads', 'head_dim', 'embed')
    if config.qkv_bias:
      self.q_bias = bias(config, 'heads', 'head_dim')
      self.k_bias = bias(config, 'kv_heads', 'head_dim')
      self.v_bias = bias(config, 'kv_heads', 'head_dim')
    if config.qk_norm:
      self.q_norm = RMSNorm(config, config.head_dim)
      self.k_norm = RMSNorm(config, config.head_dim)
    self.config = config

  def __call__(self, x, layer, position, start, cache, kernels: KernelConfig):
    """Returns the output [B, L, D] and the updated cache of the layer."""
    q = jnp.einsum('bld,dhn->blhn', x, self.q[...])
    k = jnp.einsum('bld,dkn->blkn', x, self.k[...])
    v = jnp.einsum('bld,dkn->blkn', x, self.v[...])
    if self.config.qkv_bias:
      q += self.q_bias[None, None]
      k += self.k_bias[None, None]
      v += self.v_bias[None, None]
    if self.config.qk_norm:
      q, k = self.q_norm(q), self.k_norm(k)

    angle = position[..., None] * layer.frequency[None, None]
    scaling = self.config.rope_scaling
    amplitude = 1.0 if scaling is None else scaling.amplitude
    q, k = rotate(q, angle, amplitude), rotate(k, angle, amplitude)

    k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
    if cache is not None:
      cache = write_cache(cache[0], k, start), write_cache(cache[1], v, start)
    scale = self.config.attention_scale or self.config.head_dim**-0.5
    # A block written at slot 0 attends to itself only: no cache is read.
    alone = cache is None or start is None
    if alone and layer.window is None:
      out = kernels.attend(q, k, v, scale=scale)
    else:
      (k, v), last_slot = ((k, v) if alone else cache), position
      if layer.window is None:
        first_slot = None
      else:
        first_slot = last_slot - layer.window + 1
      out = causal_attention(q, k, v, last_slot, first_slot, scale=scale)
    return jnp.einsum('blhn,hnd->bld', out, self.o[...]), cache


class MLP(nnx.Module):
  """A gated feed-forward: down(activation(gate(x)) * up(x))."""

  def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
    self.gate = weight(config, rngs, 'embed', 'mlp')
    self.up = weight(config, rngs, 'embed', 'mlp')
    self.down = weight(config, rngs, 'mlp', 'embed')
    self.activation = ACTIVATIONS[config.activation]

  def __call__(self, x: Float[Array, 'B L D']) -> Float[Array, 'B L D']:
    hidden = self.activation(x @ self.gate[...]) * (x @ self.up[...])
    return hidden @ self.down[...]


class Block(nnx.Module):
  """One layer: attention, then feed-forward, each on a normed residual.

  With `post_norms` their outputs are normed too.
  """

  def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
    self.attention_norm = RMSNorm(config, config.embed)
    self.attention = Attention(config, rngs)
    self.mlp_norm = RMSNorm(config, config.embed)
    self.mlp = (Experts if config.experts else MLP)(config, rngs)
    self.config = config
    if config.post_norms:
      self.attention_post_norm = RMSNorm(config, config.embed)
      self.mlp_post_norm = RMSNorm(config, config.embed)

  def __call__(self, x, layer, position, start, cache, kernels: KernelConfig):
    """Returns the output [B, L, D] and the updated cache of the layer."""
    mixed, cache = self.attention(
      self.attention_norm(x), layer, position, start, cache, kernels
    )
    if self.config.post_norms:
      mixed = self.attention_post_norm(mixed)
    x = x + mixed
    extra = (kernels.by_rows,) if self.config.experts else ()
    mixed = self.mlp(self.mlp_norm(x), *extra)
    if self.config.post_norms:
      mixed = self.mlp_post_norm(mixed)
    return x + mixed, cache
