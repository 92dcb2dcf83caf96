"""Grouped-query causal attention and its cache."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def causal_attention(
  query: Float[Array, 'B L H N'],
  key: Float[Array, 'B K S N'],
  value: Float[Array, 'B K S N'],
  last_slot: Int[Array, '#B L'],
  first_slot: Int[Array, '#B L'] | None = None,
  *,
  scale: float | None = None,
) -> Float[Array, 'B L H N']:
  """Returns softmax(scale q k^T) v over the slots that each query attends to.

  Training, prefill and decoding differ only in where the keys are stored.
  Consecutive groups of H / K query heads share a key-value head, as in Hugging
  Face's checkpoints.

  Args:
    query: [B, L, H, N]. Gradient flows to all three arrays.
    key: [B, K, S, N], K divides H. A slot is a position of the row:
      of the sequence itself (S = L) or of a cache.
    value: [B, K, S, N]. Must be finite in all slots.
    last_slot: [B or 1, L]; the last slot that a query attends to.
    first_slot: [B or 1, L]; the first one, at most `last_slot`; may be
      negative. None means 0.
    scale: factor of the scores; None for 1 / sqrt(N).

  Returns:
    [B, L, H, N] in the dtype of `query`.

  Numerics: scores and softmax in float32; its numerators, at most 1, are
    rounded to the dtype of `value` before the second product, and the sum of
    them divides after it, in float32.
  References: Ainslie et al., GQA, arXiv 2305.13245.
  """
  batch, length, heads, size = query.shape
  kv_heads, slots = key.shape[1:3]
  group = heads // kv_heads
  # One matrix of all queries of a key-value head: on a CPU three times as fast
  # as a product over five axes.
  query_BLKGN = query.reshape(batch, length, kv_heads, group, size)
  query_BKRN = query_BLKGN.transpose(0, 2, 3, 1, 4).reshape(
    batch, kv_heads, group * length, size
  )
  scores = jnp.einsum(
    'bkrn,bksn->bkrs', query_BKRN, key, preferred_element_type=jnp.float32
  )
  slot = jnp.arange(slots)[None, None]
  seen = slot <= last_slot[..., None]
  if first_slot is not None:
    seen &= slot >= first_slot[..., None]
  seen = jnp.tile(seen, (1, group, 1))[:, None]
  scale = size**-0.5 if scale is None else scale
  scores = jnp.where(seen, scores * scale, -jnp.inf)
  peak = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
  weights = jnp.exp(scores - peak)
  out = jnp.einsum(
    'bkrs,bksn->bkrn',
    weights.astype(value.dtype),
    value,
    preferred_element_type=jnp.float32,
  )
  out /= jnp.sum(weights, axis=-1, keepdims=True)
  out = out.reshape(batch, kv_heads, group, length, size)
  out = out.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, size)
  return out.astype(query.dtype)


def write_cache(
  cache: Float[Array, 'B K S N'],
  new: Float[Array, 'B K L N'],
  start: Int[Array, ' B'] | None,
) -> Float[Array, 'B K S N']:
  """Returns the cache with `new` at slots start[b]..start[b]+L-1 of each row.

  In place when the cache is donated or carried by a loop: the cache is neither
  copied nor moved between devices. (An index over rows instead of the `vmap`
  would gather a sharded cache.)

  Args:
    cache: [B, K, S, N].
    new: [B, K, L, N], L <= S. Cast to the dtype of the cache.
    start: [B] first slot per row; None writes one static block at slot 0. A
      slot >= S is dropped, where `dynamic_update_slice` would shift the block
      over older slots.
  """
  new = new.astype(cache.dtype)
  length = new.shape[2]
  if start is None:
    return cache.at[:, :, :length].set(new)

  def write_row(cache_KSN, new_KLN, first):
    return cache_KSN.at[:, first + jnp.arange(length)].set(
      new_KLN, mode='drop', unique_indices=True, indices_are_sorted=True
    )

  return jax.vmap(write_row)(cache, new, start)
