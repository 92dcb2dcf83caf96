"""A pre-norm decoder in Flax NNX, shared by all families.

The module is split once into a static graph and a nested dict of arrays. Other
files call `apply(params, ...)` under `jax.jit`; `nnx.merge` runs at trace time
only.
"""

from collections.abc import Callable
import functools

from flax import nnx, traverse_util
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int
import numpy as np

from jopd.models import rope
from jopd.models.api import KVCache, Model, Params
from jopd.models.architecture import DecoderConfig, weight
from jopd.models.blocks import (
  DEFAULT_KERNELS,
  Block,
  KernelConfig,
  Layer,
  RMSNorm,
)
from jopd.models.lora import is_adapted, widen

Constrain = Callable[[Float[Array, 'B L D']], Float[Array, 'B L D']]

REMAT = {
  '': None,  # nothing is recomputed
  'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  'full': jax.checkpoint_policies.nothing_saveable,
}
"""Policies: which activations of a layer are kept for the backward pass."""


class Decoder(nnx.Module):
  """All parameters of the model; `make_model` defines the forward pass.

  The blocks are one module whose arrays have a leading axis of depth. The same
  block serves a scan over layers and a loop over them.
  """

  def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
    self.embed = weight(config, rngs, 'vocab', 'embed')
    make_blocks = nnx.vmap(lambda rngs: Block(config, rngs))
    self.layers = make_blocks(rngs.split(config.layers))
    self.norm = RMSNorm(config, config.embed)
    if not config.tied:
      self.head = weight(config, rngs, 'vocab', 'embed')


def make_model(
  config: DecoderConfig,
  *,
  remat: str = '',
  constrain: Constrain = lambda x: x,
  kernels: KernelConfig = DEFAULT_KERNELS,
) -> Model:
  """Returns the functions of a decoder; no array is allocated.

  Without a cache the layers run in a scan, so that compile time does not grow
  with depth. With a cache they are unrolled: a scan would copy the cache of
  every layer at every token.

  Args:
    config: the architecture.
    remat: which activations of a layer the backward pass recomputes. 'full':
      all but the input of the layer; the least memory, a third more compute.
      'dots': all but products with weights, so attention and cheap functions.
      '': none; with adapters (`models.lora`) it means 'dots'. Values and
      gradients are the same up to rounding.
    constrain: applied to the residual stream [B, L, D] after the embedding
      and after every layer, except in decoding. On a mesh that divides the
      width of the weights pass `sharding.constrain_batch(mesh)`: by default
      the compiler divides the width of activations too, and moves these
      instead of the weights.
    kernels: implementations of experts, attention and the gathering of weights,
      except in decoding. On a mesh that divides rows pass
      `sharding.by_rows(mesh)` for experts: by default the compiler collects
      the tokens of all devices. On one that divides the width pass
      `sharding.gather_layer(mesh)`: by default it may cut each product into
      one slice per device.

  Returns:
    A `Model`. Its params are a nested dict: `embed` [V, D], `layers` with a
    leading axis of depth in every array (`attention`: `q` [., D, H, N], `k`
    and `v` [., D, K, N], `o` [., H, N, D], biases, norms; `mlp`: `gate` and
    `up` [., D, F], `down` [., F, D], with experts these [., E, ...] each and
    `router` [., D, E]; two norms or four), `norm`, and `head` [V, D] unless
    tied.

  Raises: ValueError when `remat` is unknown.
  """
  if remat not in REMAT:
    raise ValueError(f'remat is {remat!r}: choose from {", ".join(REMAT)}')

  def make(key):
    return Decoder(config, nnx.Rngs(params=key))

  abstract = nnx.eval_shape(make, jax.random.key(0))
  block, norm = nnx.graphdef(abstract.layers), nnx.graphdef(abstract.norm)
  axes = _axes(abstract)
  layer_axes = jax.tree.map(
    lambda names: names[1:], axes['layers'], is_leaf=lambda x: type(x) is tuple
  )

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
    # In a decoding step activations are smaller than weights: they may move.
    decodes = cache is not None and start is not None
    pin = (lambda x: x) if decodes else constrain
    kernel = DEFAULT_KERNELS if decodes else kernels
    # Weights that a decoding loop reads next stay where they are.
    gather = (kernel if cache is None else DEFAULT_KERNELS).gather
    # Clip, not fill: NaN in a padding token would reach real ones through the
    # product 0 * NaN in attention.
    x = pin(jnp.take(params['embed'], tokens, axis=0, mode='clip'))
    if config.embed_scale != 1:
      # Rounded to the dtype before the product, as the model was trained.
      x = x * jnp.asarray(config.embed_scale, x.dtype)

    def run_block(x, weights, layer, past):
      weights = gather(widen(weights, x.dtype), layer_axes)
      run = nnx.merge(block, weights)
      x, past = run(x, layer, position, start, past, kernel)
      return pin(x), past

    if cache is None:

      def step(x, weights_and_layer):
        return run_block(x, *weights_and_layer, None)[0], None

      # Sums of matrices and adapters, a whole model, must not be kept.
      policy = remat or ('dots' if is_adapted(params) else '')
      layers = params['layers'], _layers(config)
      x, _ = jax.lax.scan(_checkpoint(step, policy), x, layers)
    else:
      layers = _unstack(config, params)['layers']
      past, cache = cache, []
      each = _layers(config)
      for i, (weights, layer_past) in enumerate(zip(layers, past, strict=True)):
        layer = jax.tree.map(lambda stack: stack[i], each)  # noqa: B023
        x, new = run_block(x, weights, layer, layer_past)
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
    axes=axes,
    vocab_size=config.vocab_size,
    unstack=functools.partial(_unstack, config),
  )


def _checkpoint(step: Callable, remat: str) -> Callable:
  """The step of a scan under a policy of `REMAT`."""
  policy = REMAT[remat]
  if policy is None:
    return step
  # Inside a scan no two recomputations can be merged: no fence needed.
  return jax.checkpoint(step, prevent_cse=False, policy=policy)


def _layers(config: DecoderConfig) -> Layer:
  """Constants that differ between layers, with a leading axis of depth."""
  frequency = rope.frequencies(
    config.rope_theta, config.rope_scaling, config.head_dim
  )
  if config.window is None:
    return Layer(jnp.tile(frequency[None], (config.layers, 1)))
  everything = np.iinfo(np.int32).max
  sliding = np.asarray(config.sliding)
  window = np.where(sliding, config.window, everything).astype(np.int32)
  local = frequency
  if config.local_rope_theta is not None:
    local = rope.frequencies(config.local_rope_theta, None, config.head_dim)
  frequency = jnp.where(sliding[:, None], local[None], frequency[None])
  return Layer(frequency, jnp.asarray(window))


def _init_cache(
  config: DecoderConfig, batch: int, length: int, dtype: DTypeLike
) -> KVCache:
  shape = (batch, config.kv_heads, length, config.head_dim)
  return [
    (jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))
    for _ in range(config.layers)
  ]


def _unstack(config: DecoderConfig, params: Params) -> Params:
  """Params whose 'layers' is a list; unstacked params are unchanged."""
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
