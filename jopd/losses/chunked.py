"""The loss from hidden states, chunk by chunk: [B, T, V] never exists.

Each chunk of tokens gets its logits from the heads, its loss, and at once its
gradient, and then the logits are dropped. The gradient is taken in the forward
pass, so the only residuals are the two gradients themselves, and no logits are
computed twice: possible because the reduction is linear, its weights known.
"""

from collections.abc import Callable, Mapping
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
from jaxtyping import ScalarLike as Scalar

from jopd.losses.distributions import log_probs
from jopd.losses.reductions import token_mean
from jopd.losses.targets import teacher
from jopd.losses.terms import (
  Term,
  TokenBatch,
  batch_stats,
  blank,
  per_token_losses,
)


class _Tokens(NamedTuple):
  """What is cut into chunks beside the student's hidden states: [B, T, ...]."""

  teachers: dict[str, Array]  # hidden states
  token: Array
  sampler_logp: Array
  mask: Array
  weight: Array  # in the reduction


class _Shared(NamedTuple):
  """What every chunk reads whole."""

  heads: dict[str, Array]  # of the teachers
  coefs: dict[str, Any]
  temperature: Any


def distill_loss_chunked(
  student_hidden: Float[Array, 'B T D'],
  student_head: Float[Array, '_ D'],
  teachers: Mapping[str, tuple[Array, Array]],
  token: Int[Array, 'B T'],
  sampler_logp: Float[Array, 'B T'],
  terms: Mapping[str, Term],
  *,
  mask: Bool[Array, 'B T'],
  reduce: Callable = token_mean,
  count: Scalar,
  chunk_tokens: int = 128,
  temperature: Scalar = 1.0,
  vocab_size: int | None = None,
  stats_target: Callable = teacher,
  with_stats: bool = True,
) -> tuple[Float[Array, ''], dict[str, tuple[Array, Array]]]:
  """The loss and its metrics, from hidden states and heads, in chunks.

  Value and gradients of `distill_loss` on the log-probs of hidden @ head.T,
  without ever holding them for the whole batch. Chunks without a live token
  are not visited. Works under `jit` and `jax.checkpoint`, and on a mesh with B
  sharded over data and V over tensor axes (chunks are slices along T).

  Args:
    student_hidden: [B, T, D] last hidden states, float32 or bfloat16. Gradient
      flows.
    student_head: [V, D] output embedding. Gradient flows.
    teachers: (hidden [B, T, Dt], head [Vt, Dt]) of each teacher, by name; may
      be empty. Constant.
    token: [B, T] the sampled ids.
    sampler_logp: [B, T] their log-probs when they were sampled.
    terms: the terms, by name.
    mask: [B, T], True counts. Anything may stand elsewhere, NaN too.
    reduce: (per_token, mask, count) -> scalar, linear in per_token.
    count: the denominator of `reduce`, of the whole batch: micro-batches that
      share one count add up.
    chunk_tokens: about how many tokens, over all of B, have logits at a time.
      128 suits CPUs; accelerators want one to a few thousand.
    temperature: of student and teachers alike; may be traced.
    vocab_size: static; heads are cut to so many rows before they are
      normalised, so padding ids get no mass from any side and gradient 0.
      Default: the rows of the smallest head.
    stats_target: the target that stats (for weights and metrics) compare with.
      Not called when there is no teacher.
    with_stats: whether the metrics hold the token stats.

  Returns:
    (loss, metrics). metrics[name] = (sum, count) over the live tokens, for each
    field of TokenStats and, without its coefficient, each term: 'loss/<name>'.

  Gradients: to student_hidden and student_head, in their dtypes, and to nothing
    else; those of the head are accumulated in float32. Reverse mode, first
    order. The metrics have none.
  Numerics: matmuls take their inputs as they are and give float32; everything
    between them is float32.
  Raises: ValueError when shapes disagree, terms is empty, chunk_tokens < 1, or
    vocab_size exceeds a head.

  Example: one token, hidden 1, so the logits are the head; see `distill_loss`.
    >>> from jopd.losses import matching, reverse_kl
    >>> one = jnp.ones([1, 1, 1])
    >>> p, q = jnp.array([[0.25], [0.75]]), jnp.array([[0.5], [0.5]])
    >>> teachers, token = {'teacher': (one, jnp.log(q))}, jnp.array([[1]])
    >>> terms, mask = {'opd': Term(matching(reverse_kl))}, jnp.array([[True]])
    >>> loss, metrics = distill_loss_chunked(
    ...   one, jnp.log(p), teachers, token, -one[0], terms, mask=mask, count=1
    ... )
    >>> round(float(loss), 4), round(float(metrics['reverse_kl'][0]), 4)
    (0.1308, 0.1308)
  """
  models = {'student': (student_hidden, student_head), **teachers}
  vocab_size = _check(models, terms, chunk_tokens, vocab_size)
  tokens = _Tokens(
    teachers={name: hidden for name, (hidden, _) in teachers.items()},
    token=token,
    sampler_logp=sampler_logp,
    mask=mask,
    # A reduction is linear, so its gradient is each token's weight in it.
    weight=jax.grad(lambda x: reduce(x, mask, count))(jnp.zeros(mask.shape)),
  )
  shared = _Shared(
    heads={name: head[:vocab_size] for name, (_, head) in teachers.items()},
    coefs={name: term.coef for name, term in terms.items()},
    temperature=temperature,
  )
  size = min(mask.shape[1], max(1, chunk_tokens // mask.shape[0]))
  loss, sums = _total(
    _make_chunk_loss(terms, stats_target, with_stats),
    size,
    student_hidden,
    student_head[:vocab_size],
    tokens,
    shared,
  )
  metrics = {name: (total, jnp.sum(mask)) for name, total in sums.items()}
  return loss, jax.lax.stop_gradient(metrics)


def _make_chunk_loss(terms, stats_target, with_stats):
  """(logits, tokens, shared) -> (loss, sums of the metrics) of one chunk."""

  def chunk_loss(logits, tokens, shared):
    heads, coefs, temperature = shared
    normalise = functools.partial(log_probs, temperature=temperature)
    logps = jax.tree.map(
      lambda *teacher: normalise(_logits(*teacher)), tokens.teachers, heads
    )
    batch = TokenBatch(
      normalise(logits), logps, tokens.token, tokens.sampler_logp
    )
    stats = batch_stats(batch, stats_target)
    losses = blank(per_token_losses(batch, terms, stats), tokens.mask)
    loss = sum(c * jnp.sum(tokens.weight * losses[k]) for k, c in coefs.items())
    metrics = {f'loss/{name}': x for name, x in losses.items()}
    if with_stats:  # None, where there is no target, is an empty tree
      metrics |= blank(stats._asdict(), tokens.mask)
    return loss, {k: jnp.sum(x) for k, x in metrics.items() if x is not None}

  return chunk_loss


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _total(chunk_loss, size, hidden, head, tokens, shared):
  """The sum of chunk_loss over the chunks."""

  def visit(i, sums):
    chunk, chunk_tokens, _ = _cut(i, size, hidden, tokens)
    new = chunk_loss(_logits(chunk, head), chunk_tokens, shared)
    return jax.tree.map(jnp.add, sums, new)

  zeros = _zero_sums(chunk_loss, size, hidden, head, tokens, shared)
  return _for_live_chunks(visit, zeros, size, tokens.mask)


def _total_forward(chunk_loss, size, hidden, head, tokens, shared):
  """The same; each chunk's gradient is taken while its logits are there."""

  def visit(i, carry):
    sums, d_hidden, d_head = carry
    chunk, chunk_tokens, start = _cut(i, size, hidden, tokens)
    loss, pull_back, metrics = jax.vjp(
      lambda logits: chunk_loss(logits, chunk_tokens, shared),
      _logits(chunk, head),
      has_aux=True,
    )
    (d_logits,) = pull_back(jnp.ones_like(loss))
    d_logits = d_logits.astype(head.dtype)
    d_chunk = _einsum('nv,vd->nd', d_logits, head).astype(hidden.dtype)
    # Adding keeps what an overlapping chunk has written: see _cut.
    old = _slice(d_hidden, start, size)
    d_chunk = old + d_chunk.reshape(old.shape)
    return (
      jax.tree.map(jnp.add, sums, (loss, metrics)),
      jax.lax.dynamic_update_slice_in_dim(d_hidden, d_chunk, start, axis=1),
      d_head + _einsum('nv,nd->vd', d_logits, chunk),
    )

  zeros = (
    _zero_sums(chunk_loss, size, hidden, head, tokens, shared),
    jnp.zeros_like(hidden),
    jnp.zeros_like(head, jnp.float32),
  )
  sums, d_hidden, d_head = _for_live_chunks(visit, zeros, size, tokens.mask)
  return sums, (d_hidden, d_head.astype(head.dtype))


def _total_backward(chunk_loss, size, gradients, cotangents):
  """Scales the gradients; only the loss has any."""
  del chunk_loss, size
  # In float32: a scale rounded to bfloat16 would bias every entry alike.
  d_hidden, d_head = ((g * cotangents[0]).astype(g.dtype) for g in gradients)
  return d_hidden, d_head, None, None


_total.defvjp(_total_forward, _total_backward)


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
  # The last chunk starts early enough to be whole. It then overlaps the one
  # before, and the tokens that are not its own are not live in it.
  length = tokens.mask.shape[1]
  start = jnp.minimum(i * size, length - size)
  chunk = jax.tree.map(lambda x: _slice(x, start, size), (hidden, tokens))
  own = start + jnp.arange(size) >= i * size
  chunk = blank(chunk, chunk[1].mask & own[None, :])
  # Flat, because matrix products on [B, size] by V would transpose the logits.
  return *jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), chunk), start


def _slice(x, start, size):
  return jax.lax.dynamic_slice_in_dim(x, start, size, axis=1)


def _logits(hidden, head):
  return _einsum('nd,vd->nv', hidden, head)


def _einsum(indices, x, y):
  """A matrix product of inputs as they are, accumulated in float32."""
  return jnp.einsum(indices, x, y, preferred_element_type=jnp.float32)


def _zero_sums(chunk_loss, size, hidden, head, tokens, shared):
  """Zeros in the shape of what chunk_loss returns."""
  chunk, chunk_tokens, _ = jax.eval_shape(lambda: _cut(0, size, hidden, tokens))
  logits = jax.eval_shape(_logits, chunk, head)
  sums = jax.eval_shape(chunk_loss, logits, chunk_tokens, shared)
  return jax.tree.map(jnp.zeros_like, sums)


def _check(models, terms, chunk_tokens, vocab_size):
  """Refuses, at trace time, what cannot be meant; returns the rows to keep."""
  if not terms:
    raise ValueError('expected at least one term, got none')
  if chunk_tokens < 1:
    raise ValueError(f'chunk_tokens must be at least 1, got {chunk_tokens}')
  batch, length = models['student'][0].shape[:2]
  for name, (hidden, head) in models.items():
    if hidden.shape != (batch, length, head.shape[1]):
      raise ValueError(
        f'{name}: expected hidden [{batch}, {length}, D] and head [V, D], got'
        f' {hidden.shape} and {head.shape}'
      )
  rows = {name: head.shape[0] for name, (_, head) in models.items()}
  smallest = min(rows.values())
  if vocab_size is None:
    return smallest
  if not 1 <= vocab_size <= smallest:
    raise ValueError(
      f'vocab_size must be in [1, {smallest}], got {vocab_size}; the heads'
      f' have {rows} rows'
    )
  return vocab_size
