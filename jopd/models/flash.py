"""Flash attention over whole sequences, by kernels of JAX.

For training, scoring and prefill on accelerators. On CPUs, and with a cache,
attention is `attention.causal_attention`.
"""

from collections.abc import Callable
import functools

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel as kernel,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_mask as masks,
)
import jax.numpy as jnp
from jaxtyping import Array, Float

from jopd.models.attention import causal_attention

Attend = Callable[..., Float[Array, 'B L H N']]
"""(query [B, L, H, N], key, value [B, K, L, N], *, scale) -> [B, L, H, N]."""

_LANES = 128  # of a TPU: sizes of blocks are multiples
_BLOCKS = (512, 256, 128)


def attend_on(platform: str) -> Attend:
  """The attention over whole sequences for a platform.

  Args:
    platform: of a `jax.Device`: 'tpu', 'gpu' or 'cpu'.

  Returns:
    A function like `plain`; all return the same up to rounding.
  """
  return {'tpu': splash, 'gpu': cudnn}.get(platform, plain)


def plain(
  query: Float[Array, 'B L H N'],
  key: Float[Array, 'B K L N'],
  value: Float[Array, 'B K L N'],
  *,
  scale: float,
) -> Float[Array, 'B L H N']:
  """Causal attention: each position attends to itself and earlier ones.

  Args:
    query: [B, L, H, N]. Gradient flows to all three arrays.
    key: [B, K, L, N], K divides H.
    value: [B, K, L, N].
    scale: factor of the scores.

  Returns:
    [B, L, H, N] in the dtype of `query`.
  """
  last_slot = jnp.arange(query.shape[1])[None]
  return causal_attention(query, key, value, last_slot, scale=scale)


def splash(
  query: Float[Array, 'B L H N'],
  key: Float[Array, 'B K L N'],
  value: Float[Array, 'B K L N'],
  *,
  scale: float,
  interpret: bool = False,
) -> Float[Array, 'B L H N']:
  """`plain`, by JAX's Pallas kernel for TPUs.

  Args:
    query, key, value, scale: as for `plain`. Lengths and heads are padded to
      whole blocks.
    interpret: interpret the kernel instead of compiling it, on any device.

  Numerics: the scale is rounded into the query's dtype; scores and softmax are
    float32. The backward pass recomputes them.
  """
  length, heads, size = query.shape[1:]
  padded = -(-length // _LANES) * _LANES
  wide = -(-size // _LANES) * _LANES
  block = next(n for n in _BLOCKS if padded % n == 0)
  fill = ((0, 0), (0, 0), (0, padded - length), (0, wide - size))
  query = (query * scale).astype(query.dtype).swapaxes(1, 2)
  attend = kernel.make_splash_mha(
    masks.MultiHeadMask([masks.CausalMask((padded, padded))] * heads),
    block_sizes=kernel.BlockSizes(
      block_q=block,
      block_kv=block,
      block_q_dkv=block,
      block_kv_dkv=block,
      block_q_dq=block,
      block_kv_dq=block,
    ),
    head_shards=1,
    q_seq_shards=1,
    interpret=interpret,
  )
  out = jax.vmap(attend)(*(jnp.pad(x, fill) for x in (query, key, value)))
  return out[:, :, :length, :size].swapaxes(1, 2)


def cudnn(
  query: Float[Array, 'B L H N'],
  key: Float[Array, 'B K L N'],
  value: Float[Array, 'B K L N'],
  *,
  scale: float,
) -> Float[Array, 'B L H N']:
  """`plain`, by cuDNN's kernel for GPUs, which does not support float32."""
  if query.dtype == jnp.float32:
    return plain(query, key, value, scale=scale)
  attend = functools.partial(
    jax.nn.dot_product_attention,
    scale=scale,
    is_causal=True,
    implementation='cudnn',
  )
  return attend(query, key.swapaxes(1, 2), value.swapaxes(1, 2))
