"""The loops of the chunked loss: over chunks, over blocks, over tiles.

A chunk is the size of a matrix product. The dozen passes over its logits are
made block by block on a CPU, to stay in the cache.

A chunk function takes (logits, tokens, shared): the logits of every model at
some tokens, [N, V], what else is known of those tokens, [N, ...], and what all
chunks share.
"""

import functools
from typing import Any, NamedTuple

import jax
from jax.custom_derivatives import SymbolicZero
import jax.numpy as jnp
from jaxtyping import Array

from jopd.losses.terms import Factors, blank
from jopd.losses.token_stats import Row

# Elements per block of logits and per tile of the head's gradient on a CPU, so
# that either is 4 MiB.
BLOCK = 2**20


class Tokens(NamedTuple):
  """What is cut into chunks beside the student's hidden states: [B, T, ...]."""

  teachers: dict[str, Array]  # hidden states
  token: Array
  sampler_logp: Array | None
  rollout_logp: Array | None
  row: Row | None
  mask: Array
  weights: dict[str, Array]  # in the reduction, by term
  factors: dict[str, Factors] | None  # where they are known beforehand


class Shared(NamedTuple):
  """What every chunk reads whole."""

  heads: dict[str, Array]  # of the teachers
  coefs: dict[str, Any]
  temperature: Any


class Logits(NamedTuple):
  """What a chunk's loss is a function of: [N, V] each."""

  student: Array
  teachers: dict[str, Array]


def collect_chunks(collect, size, hidden, head, tokens, shared):
  """The results of `collect`, [B, T]; zeros in chunks without a live token.

  Args:
    collect: a chunk function that returns a tree of [N].
    size: columns per chunk.
    hidden: [B, T, D] of the student.
    head: [V, D] of the student.
    tokens: Tokens.
    shared: Shared.

  Gradients: none; stop those of hidden and head before.
  """

  def of_chunk(i):
    chunk, chunk_tokens, start = _cut(i, size, hidden, tokens)
    rows = _logits(chunk, head, chunk_tokens, shared), chunk_tokens
    return _by_blocks(lambda *xs: ((), collect(*xs, shared)), rows)[1], start

  def visit(i, collected):
    new, start = of_chunk(i)

    def put(x, old):
      # A chunk is blank where it overlaps an earlier one, see _cut.
      new_columns = start + jnp.arange(size) >= i * size
      x = jnp.where(
        new_columns[None, :], x.reshape(-1, size), _slice(old, start, size)
      )
      return jax.lax.dynamic_update_slice_in_dim(old, x, start, axis=1)

    return jax.tree.map(put, new, collected)

  zeros = jax.tree.map(
    lambda x: jnp.zeros(tokens.mask.shape, x.dtype),
    jax.eval_shape(of_chunk, 0)[0],
  )
  return _for_live_chunks(visit, zeros, size, tokens.mask)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def sum_chunks(chunk_loss, size, hidden, head, tokens, shared):
  """The sum of `chunk_loss` over the chunks; only its loss has a gradient.

  Args:
    chunk_loss: a chunk function that returns (loss, metrics), all scalars.
    size: columns per chunk.
    hidden: [B, T, D] of the student. Gradient flows.
    head: [V, D] of the student. Gradient flows. A head that is not
      differentiated, as of a frozen model with adapters, costs neither the
      product nor the memory.
    tokens: Tokens.
    shared: Shared.

  Gradients: to hidden and head, in their dtypes; that of the head is added up
    in float32. Taken in the forward pass, so first order only.
  """

  def of_chunk(i):
    chunk, chunk_tokens, _ = _cut(i, size, hidden, tokens)
    rows = _logits(chunk, head, chunk_tokens, shared), chunk_tokens
    return _by_blocks(lambda *xs: (chunk_loss(*xs, shared), ()), rows)[0]

  def visit(i, sums):
    return jax.tree.map(jnp.add, sums, of_chunk(i))

  zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(of_chunk, 0))
  return _for_live_chunks(visit, zeros, size, tokens.mask)


def _sum_chunks_forward(chunk_loss, size, hidden, head, tokens, shared):
  """The same; each chunk's gradient is taken while its logits are there."""
  # Known when it is traced. None instead of a gradient is an empty tree.
  trained = head.perturbed
  hidden, head, tokens, shared = jax.tree.map(
    lambda x: x.value, (hidden, head, tokens, shared)
  )

  def of_block(logits, block_tokens):
    loss, pull_back, metrics = jax.vjp(
      lambda x: chunk_loss(logits._replace(student=x), block_tokens, shared),
      logits.student,
      has_aux=True,
    )
    (d_logits,) = pull_back(jnp.ones_like(loss))
    return (loss, metrics), d_logits.astype(head.dtype)

  def of_chunk(i):
    chunk, chunk_tokens, start = _cut(i, size, hidden, tokens)
    rows = _logits(chunk, head, chunk_tokens, shared), chunk_tokens
    return *_by_blocks(of_block, rows), chunk, start

  def visit(i, carry):
    sums, d_hidden, d_head = carry
    new, d_logits, chunk, start = of_chunk(i)
    d_chunk = _einsum('nv,vd->nd', d_logits, head).astype(hidden.dtype)
    # Adding keeps what an overlapping chunk has written: see _cut.
    old = _slice(d_hidden, start, size)
    d_chunk = old + d_chunk.reshape(old.shape)
    return (
      jax.tree.map(jnp.add, sums, new),
      jax.lax.dynamic_update_slice_in_dim(d_hidden, d_chunk, start, axis=1),
      _add_product(d_head, d_logits, chunk) if trained else None,
    )

  zeros = (
    jax.tree.map(jnp.zeros_like, jax.eval_shape(of_chunk, 0)[0]),
    jnp.zeros_like(hidden),
    jnp.zeros_like(head, jnp.float32) if trained else None,
  )
  sums, d_hidden, d_head = _for_live_chunks(visit, zeros, size, tokens.mask)
  return sums, (d_hidden, d_head.astype(head.dtype) if trained else None)


def _sum_chunks_backward(chunk_loss, size, gradients, cotangents):
  """Scales the gradients."""
  del chunk_loss, size
  scale = cotangents[0]
  if isinstance(scale, SymbolicZero):  # a metric is differentiated
    scale = jnp.zeros((), scale.dtype)
  # In float32: a scale rounded to bfloat16 would bias every entry alike.
  d_hidden, d_head = jax.tree.map(
    lambda g: (g * scale).astype(g.dtype), gradients
  )
  return d_hidden, d_head, None, None


sum_chunks.defvjp(
  _sum_chunks_forward, _sum_chunks_backward, symbolic_zeros=True
)


def _by_blocks(function, rows):
  """function(*rows) -> (sums, new rows), on a CPU block by block.

  Accelerators fuse the passes and would only lose by a loop; and to cut rows
  that lie on many devices is to gather them.
  """
  count, vocab = rows[0].student.shape
  size = min(count, max(1, BLOCK // vocab))
  size = next(n for n in range(size, 0, -1) if count % n == 0)

  def in_blocks(*rows):
    blocks = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), rows)
    sums, new = jax.lax.map(lambda block: function(*block), blocks)
    return (
      jax.tree.map(lambda x: jnp.sum(x, axis=0), sums),
      jax.tree.map(lambda x: x.reshape(count, *x.shape[2:]), new),
    )

  if size == count:
    return function(*rows)
  return jax.lax.platform_dependent(*rows, cpu=in_blocks, default=function)


def _add_product(d_head, d_logits, chunk):
  """d_head + d_logits.T @ chunk, on a CPU without the product as a whole."""
  vocab, width = d_head.shape
  size = min(vocab, max(1, BLOCK // width))

  def at_once(d_head, d_logits, chunk):
    return d_head + _einsum('nv,nd->vd', d_logits, chunk)

  def in_tiles(d_head, d_logits, chunk):
    def visit(i, d_head):
      # The last tile is moved to be whole; what it repeats must not count.
      start = jnp.minimum(i * size, vocab - size)
      new_rows = start + jnp.arange(size) >= i * size
      tile = jnp.where(new_rows[None, :], _slice(d_logits, start, size), 0)
      old = _slice(d_head, start, size, axis=0)
      new = at_once(old, tile, chunk)
      return jax.lax.dynamic_update_slice_in_dim(d_head, new, start, axis=0)

    return jax.lax.fori_loop(0, -(-vocab // size), visit, d_head)

  if size == vocab:
    return at_once(d_head, d_logits, chunk)
  return jax.lax.platform_dependent(
    d_head, d_logits, chunk, cpu=in_tiles, default=at_once
  )


def _for_live_chunks(visit, carry, size, mask):
  """Folds visit(i, carry) over the chunks i that hold a live token."""
  length = mask.shape[1]
  chunks = -(-length // size)
  columns = jnp.pad(jnp.any(mask, axis=0), (0, chunks * size - length))
  live = jnp.any(columns.reshape(chunks, size), axis=1)
  # A loop over the live ones, not a `cond` in a loop over all: a branch that
  # does nothing would still copy the [V, D] accumulator.
  (order,) = jnp.nonzero(live, size=chunks)
  return jax.lax.fori_loop(
    0, jnp.sum(live), lambda j, carry: visit(order[j], carry), carry
  )


def _cut(i, size, hidden, tokens):
  """Chunk i of hidden and tokens, [B * size, ...], blank where not live."""
  # The last chunk starts early enough to be whole. Tokens of the one before are
  # not live in it.
  length = tokens.mask.shape[1]
  start = jnp.minimum(i * size, length - size)
  chunk = jax.tree.map(lambda x: _slice(x, start, size), (hidden, tokens))
  new_columns = start + jnp.arange(size) >= i * size
  chunk = blank(chunk, chunk[1].mask & new_columns[None, :])
  # Flat, because matrix products on [B, size] by V would transpose the logits.
  return *jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), chunk), start


def _slice(x, start, size, axis=1):
  return jax.lax.dynamic_slice_in_dim(x, start, size, axis=axis)


def _logits(hidden, head, tokens, shared):
  """The logits of a chunk under every model."""
  product = functools.partial(_einsum, 'nd,vd->nv')
  teachers = jax.tree.map(product, tokens.teachers, shared.heads)
  return Logits(product(hidden, head), teachers)


def _einsum(indices, x, y):
  """A matrix product of inputs as they are, accumulated in float32."""
  return jnp.einsum(indices, x, y, preferred_element_type=jnp.float32)
