"""A pre-norm decoder in Flax NNX: the Qwen2 and Qwen3 families share it.

The module tree is split once, when the model is made, into a static graph and
a nested dict of arrays. Everything outside this file sees `apply(params, ...)`
under `jax.jit`; `nnx.merge` runs at trace time only, so that a step pays for
no walk over Python objects.
"""

from collections.abc import Callable
import dataclasses
import functools

from flax import nnx, traverse_util
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jopd.models.api import KVCache, Model, Params
from jopd.models.attention import causal_attention, write_cache
from jopd.models.lora import is_adapted, widen

Constrain = Callable[[Float[Array, 'B L D']], Float[Array, 'B L D']]

REMAT = {
  '': None,  # all of it
  'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  'full': jax.checkpoint_policies.nothing_saveable,
}
"""What the backward pass finds kept of each layer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
  """The architecture: whatever decides shapes or the result of the forward.

  Attributes:
    vocab_size: V.
    layers: number of blocks.
    embed: D, the width of the residual stream.
    heads: H, query heads.
    kv_heads: K, key-value heads; divides `heads`.
    head_dim: N; even, and free of D / H.
    mlp: F, the hidden width of the feed-forward.
    rope_theta: base of the rotary angles.
    norm_eps: added to the mean square in every RMS norm.
    tied: whether the input embedding is also the head.
    qkv_bias: biases on queries, keys and values (Qwen2).
    qk_norm: RMS norm over N of queries and keys (Qwen3).
    init_scale: standard deviation of random weights.
    max_positions: what the pretrained weights are good for. The forward does
      not read it; kept for files, and for whoever picks lengths.

  Raises: ValueError when heads cannot be grouped or rotated.
  """

  vocab_size: int
  layers: int
  embed: int
  heads: int
  kv_heads: int
  head_dim: int
  mlp: int
  rope_theta: float = 10_000.0
  norm_eps: float = 1e-6
  tied: bool = False
  qkv_bias: bool = False
  qk_norm: bool = False
  init_scale: float = 0.02
  max_positions: int = 32_768

  def size(self, axis: str) -> int:
    """Length of a logical axis."""
    return self.vocab_size if axis == 'vocab' else getattr(self, axis)

  def __post_init__(self):
    for name in (
      'vocab_size',
      'layers',
      'embed',
      'kv_heads',
      'head_dim',
      'mlp',
    ):
      if getattr(self, name) < 1:
        raise ValueError(f'{name} = {getattr(self, name)} must be at least 1')
    if self.heads % self.kv_heads:
      raise ValueError(
        f'heads = {self.heads} is not a multiple of kv_heads = '
        f'{self.kv_heads}: query heads share key-value heads in equal groups'
      )
    if self.head_dim % 2:
      raise ValueError(
        f'head_dim = {self.head_dim} is odd: rotary angles turn pairs'
      )


def _weight(config: DecoderConfig, rngs: nnx.Rngs, *axes: str) -> nnx.Param:
  """A random weight; its logical axes decide both its shape and sharding."""
  shape = tuple(config.size(axis) for axis in axes)
  values = jax.random.normal(rngs.params(), shape) * config.init_scale
  return nnx.Param(values, axes=axes)


def _bias(config: DecoderConfig, *axes: str) -> nnx.Param:
  return nnx.Param(jnp.zeros([config.size(axis) for axis in axes]), axes=axes)


def _rotate(
  x: Float[Array, 'B L H N'], angle: Float[Array, '#B L N/2']
) -> Float[Array, 'B L H N']:
  """Turns the pairs (x[i], x[i + N/2]) by the angles of their position."""
  cos, sin = jnp.cos(angle)[:, :, None], jnp.sin(angle)[:, :, None]
  left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  turned = [left * cos - right * sin, right * cos + left * sin]
  return jnp.concatenate(turned, axis=-1).astype(x.dtype)


class RMSNorm(nnx.Module):
  """x / sqrt(mean(x^2) + eps) * scale, with float32 statistics."""

  def __init__(self, size: int, eps: float):
    self.scale = nnx.Param(jnp.ones(size), axes=(None,))
    self.eps = eps

  def __call__(self, x: Float[Array, '*B D']) -> Float[Array, '*B D']:
    wide = x.astype(jnp.float32)
    square = jnp.mean(wide * wide, axis=-1, keepdims=True)
    normed = (wide * jax.lax.rsqrt(square + self.eps)).astype(x.dtype)
    return normed * self.scale.reshape(*[1] * (x.ndim - 1), -1)


class Attention(nnx.Module):
  """Grouped-query self-attention with rotary positions."""

  def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
    self.q = _weight(config, rngs, 'embed', 'heads', 'head_dim')
    self.k = _weight(config, rngs, 'embed', 'kv_heads', 'head_dim')
    self.v = _weight(config, rngs, 'embed', 'kv_heads', 'head_dim')
    self.o = _weight(config, rngs, 'heads', 'head_dim', 'embed')
    if config.qkv_bias:
      self.q_bias = _bias(config, 'heads', 'head_dim')
      self.k_bias = _bias(config, 'kv_heads', 'head_dim')
      self.v_bias = _bias(config, 'kv_heads', 'head_dim')
    if config.qk_norm:
      self.q_norm = RMSNorm(config.head_dim, config.norm_eps)
      self.k_norm = RMSNorm(config.head_dim, config.norm_eps)
    self.config = config

  def __call__(self, x, position, start, cache):
    """Maps [B, L, D] to [B, L, D], and the layer's cache to its successor."""
    q = jnp.einsum('bld,dhn->blhn', x, self.q[...])
    k = jnp.einsum('bld,dkn->blkn', x, self.k[...])
    v = jnp.einsum('bld,dkn->blkn', x, self.v[...])
    if self.config.qkv_bias:
      q += self.q_bias[None, None]
      k += self.k_bias[None, None]
      v += self.v_bias[None, None]
    if self.config.qk_norm:
      q, k = self.q_norm(q), self.k_norm(k)

    half = self.config.head_dim // 2
    frequency = self.config.rope_theta ** (-jnp.arange(half) / half)
    angle = position[..., None] * frequency[None, None]
    q, k = _rotate(q, angle), _rotate(k, angle)

    k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
    last_slot = jnp.arange(x.shape[1])[None]
    if cache is not None:
      cache = write_cache(cache[0], k, start), write_cache(cache[1], v, start)
      # A block written at slot 0 sees only itself: no need to read the cache.
      if start is not None:
        (k, v), last_slot = cache, position
    out = causal_attention(q, k, v, last_slot)
    return jnp.einsum('blhn,hnd->bld', out, self.o[...]), cache


class MLP(nnx.Module):
  """SwiGLU: down(silu(gate(x)) * up(x))."""

  def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
    self.gate = _weight(config, rngs, 'embed', 'mlp')
    self.up = _weight(config, rngs, 'embed', 'mlp')
    self.down = _weight(config, rngs, 'mlp', 'embed')

  def __call__(self, x: Float[Array, 'B L D']) -> Float[Array, 'B L D']:
    hidden = jax.nn.silu(x @ self.gate[...]) * (x @ self.up[...])
    return hidden @ self.down[...]


class Block(nnx.Module):
  """One layer: attention, then feed-forward, each on a normed residual."""

  def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
    self.attention_norm = RMSNorm(config.embed, config.norm_eps)
    self.attention = Attention(config, rngs)
    self.mlp_norm = RMSNorm(config.embed, config.norm_eps)
    self.mlp = MLP(config, rngs)

  def __call__(self, x, position, start, cache):
    """Maps [B, L, D] to [B, L, D], and the layer's cache to its successor."""
    mixed, cache = self.attention(
      self.attention_norm(x), position, start, cache
    )
    x = x + mixed
    return x + self.mlp(self.mlp_norm(x)), cache


class Decoder(nnx.Module):
  """Every parameter of the model, declared; `make_model` runs it.

  The blocks are one module whose arrays have a leading axis of depth: a layer
  is a slice of it, so that the same block serves a scan over layers and a
  loop over them.
  """

  def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
    self.embed = _weight(config, rngs, 'vocab', 'embed')
    make_blocks = nnx.vmap(lambda rngs: Block(config, rngs))
    self.layers = make_blocks(rngs.split(config.layers))
    self.norm = RMSNorm(config.embed, config.norm_eps)
    if not config.tied:
      self.head = _weight(config, rngs, 'vocab', 'embed')


def make_model(
  config: DecoderConfig,
  *,
  remat: str = '',
  constrain: Constrain = lambda x: x,
) -> Model:
  """Returns the functions of a decoder; no array is allocated.

  Without a cache the layers run in a scan, so that compile time does not grow
  with depth. With a cache they are unrolled: a scan would copy the cache of
  every layer at every token.

  Args:
    config: the architecture.
    remat: what the backward pass recomputes, layer by layer, instead of having
      its activations kept. 'full': all but the layer's input, the least memory
      for about a third more compute. 'dots': all but products with weights,
      so that only attention and cheap functions are computed twice. '':
      nothing, but with adapters (`models.lora`) it is 'dots'. Values and
      gradients stay the same up to rounding.
    constrain: applied to the residual stream [B, L, D] after the embedding
      and after every layer. On a mesh that divides the width of the weights,
      `sharding.constrain_batch(mesh)`: left alone, the compiler keeps the
      width of activations divided too, and moves them instead of the weights.
      Decoding is left alone, since there they are the smaller.

  Returns:
    A `Model`. Its params are a nested dict: `embed` [V, D], `layers` with a
    leading axis of depth in every array (`attention`: `q` [., D, H, N], `k`
    and `v` [., D, K, N], `o` [., H, N, D], biases, norms; `mlp`: `gate` and
    `up` [., D, F], `down` [., F, D]; two norms), `norm`, and `head` [V, D]
    unless tied.

  Raises: ValueError when `remat` is unknown.
  """
  if remat not in REMAT:
    raise ValueError(f'remat is {remat!r}: choose from {", ".join(REMAT)}')

  def make(key):
    return Decoder(config, nnx.Rngs(params=key))

  abstract = nnx.eval_shape(make, jax.random.key(0))
  block, norm = nnx.graphdef(abstract.layers), nnx.graphdef(abstract.norm)

  def init(key):
    return nnx.to_pure_dict(nnx.state(make(key)))

  def apply(
    params: Params,
    tokens: Int[Array, 'B L'],
    start: Int[Array, ' B'] | None = None,
    cache: KVCache | None = None,
  ) -> tuple[Float[Array, 'B L D'], KVCache | None]:
    position = jnp.arange(tokens.shape[1])[None]
    if start is not None:
      position = position + start[:, None]
    # In a decoding step the weights outweigh the activations: these may move.
    decodes = cache is not None and start is not None
    pin = (lambda x: x) if decodes else constrain
    # Clip, not fill: NaN in a padding token would reach real ones through the
    # product 0 * NaN in attention.
    x = pin(jnp.take(params['embed'], tokens, axis=0, mode='clip'))

    def run_block(x, weights, past):
      layer = nnx.merge(block, widen(weights, x.dtype))
      x, past = layer(x, position, start, past)
      return pin(x), past

    if cache is None:

      def step(x, weights):
        return run_block(x, weights, None)[0], None

      # Sums of matrices and adapters must not be kept: they are a model.
      policy = REMAT[remat or ('dots' if is_adapted(params) else '')]
      if policy:
        # Inside a scan no two recomputations can be merged: no fence needed.
        step = jax.checkpoint(step, prevent_cse=False, policy=policy)
      x, _ = jax.lax.scan(step, x, params['layers'])
    else:
      layers = _unstack(config, params)['layers']
      past, cache = cache, []
      for weights, layer_past in zip(layers, past, strict=True):
        x, new = run_block(x, weights, layer_past)
        cache.append(new)
    return nnx.merge(norm, params['norm'])(x), cache

  def head(params):
    return params['embed' if config.tied else 'head']

  return Model(
    config=config,
    init=init,
    apply=apply,
    head=head,
    init_cache=functools.partial(_init_cache, config),
    axes=_axes(abstract),
    vocab_size=config.vocab_size,
    unstack=functools.partial(_unstack, config),
  )


def _init_cache(
  config: DecoderConfig, batch: int, length: int, dtype: DTypeLike
) -> KVCache:
  shape = (batch, config.kv_heads, length, config.head_dim)
  return [
    (jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))
    for _ in range(config.layers)
  ]


def _unstack(config: DecoderConfig, params: Params) -> Params:
  """Params whose 'layers' is a list; those that have been unstacked pass."""
  layers = params['layers']
  if isinstance(layers, list):
    return params
  return {
    **params,
    'layers': [
      jax.tree.map(lambda stack: stack[i], layers)  # noqa: B023
      for i in range(config.layers)
    ],
  }


def _axes(decoder: Decoder) -> dict:
  """The logical axes of every parameter, as they were declared."""
  axes = {
    path: param.axes if path[0] != 'layers' else ('layers', *param.axes)
    for path, param in nnx.to_flat_state(nnx.state(decoder))
  }
  return traverse_util.unflatten_dict(axes)
