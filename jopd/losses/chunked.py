"""The loss from hidden states, chunk by chunk: [B, T, V] never exists.

Each chunk of tokens gets its logits from the heads, its loss and its gradient,
and then the logits are dropped. The gradient is taken in the forward pass, so
the only residuals are the two gradients, and no logits are computed twice. This
is possible because the aggregation is linear and its weights are known.

Weights and advantages that read beyond their token need the stats of all tokens
first. For them there is a first pass that collects the stats.
"""

from collections.abc import Callable, Mapping
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
from jaxtyping import ScalarLike as Scalar

from jopd.losses.aggregation import token_mean
from jopd.losses.distributions import log_probs
from jopd.losses.kernel import Shared, Tokens, collect_chunks, sum_chunks
from jopd.losses.targets import teacher
from jopd.losses.terms import (
  Term,
  blank,
  count_of,
  narrowed,
  per_token_losses,
  term_factors,
  term_masks,
  term_reads,
  term_stats,
)
from jopd.losses.token_stats import Row, TokenBatch


def distill_loss_chunked(
  student_hidden: Float[Array, 'B T D'],
  student_head: Float[Array, '_ D'],
  teachers: Mapping[str, tuple[Array, Array]],
  token: Int[Array, 'B T'],
  sampler_logp: Float[Array, 'B T'] | None,
  terms: Mapping[str, Term],
  *,
  mask: Bool[Array, 'B T'],
  reduce: Callable = token_mean,
  count: Scalar | Mapping[str, Scalar],
  chunk_tokens: int = 256,
  temperature: Scalar = 1.0,
  vocab_size: int | None = None,
  rollout_logp: Float[Array, 'B T'] | None = None,
  stats_target: Callable = teacher,
  stats_rows: Callable[[Row], Bool[Array, ' B']] | None = None,
  with_stats: bool = True,
  row: Row | None = None,
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
    sampler_logp: [B, T] their log-probs when they were sampled; None for a
      dataset's.
    terms: the terms, by name.
    mask: [B, T], True counts. Other places may hold anything, NaN too.
    reduce: (per_token, mask, count) -> scalar, linear in per_token.
    count: the denominator of `reduce`, of the whole batch: micro-batches that
      share one count add up. By term where terms learn from different rows.
    chunk_tokens: about how many tokens, over all of B, have logits at a time.
      256 suits CPUs; accelerators want one to a few thousand.
    temperature: of student and teachers alike; may be traced.
    vocab_size: static; the logits of ids from here on are -inf, so padding ids
      get no mass from any side and gradient 0. Default: the rows of the
      smallest head.
    rollout_logp: [B, T] of the tokens under the student that sampled them, at
      temperature 1 and without a filter; for the metric `logp_difference`.
    stats_target: the target that stats (for weights and metrics) compare with.
      Not called when there is no teacher.
    stats_rows: Row -> [*B] bool, the rows of the stats among the metrics. None:
      all.
    with_stats: whether the metrics hold the token stats.
    row: Row of [B], for the weights, advantages and terms that read it.

  Returns:
    (loss, metrics). metrics[name] = (sum, count) over the live tokens, for each
    field of TokenStats that is of the token itself, and for each term
    'loss/<name>', without its coefficient, over its tokens.

  Gradients: to student_hidden and student_head, in their dtypes, and to nothing
    else; those of the head are accumulated in float32. Reverse mode, first
    order. The metrics have none.
  Numerics: matmuls take their inputs as they are and give float32; everything
    between them is float32.
  Raises: ValueError when shapes disagree, terms is empty, chunk_tokens < 1, or
    vocab_size exceeds a head.

  Example: one token, hidden 1, so the logits are the head; see `distill_loss`.
    >>> from jopd.losses import divergence, reverse_kl
    >>> one = jnp.ones([1, 1, 1])
    >>> p, q = jnp.array([[0.25], [0.75]]), jnp.array([[0.5], [0.5]])
    >>> teachers, token = {'teacher': (one, jnp.log(q))}, jnp.array([[1]])
    >>> terms, mask = {'opd': Term(divergence(reverse_kl))}, jnp.array([[True]])
    >>> loss, metrics = distill_loss_chunked(
    ...   one, jnp.log(p), teachers, token, -one[0], terms, mask=mask, count=1
    ... )
    >>> round(float(loss), 4), round(float(metrics['reverse_kl'][0]), 4)
    (0.1308, 0.1308)
  """
  models = {'student': (student_hidden, student_head), **teachers}
  vocab_size = _check(models, terms, chunk_tokens, vocab_size)
  size = min(mask.shape[1], max(1, chunk_tokens // mask.shape[0]))
  masks = term_masks(terms, row, mask)
  tokens = Tokens(
    teachers={name: hidden for name, (hidden, _) in teachers.items()},
    token=token,
    sampler_logp=sampler_logp,
    rollout_logp=rollout_logp,
    row=jax.tree.map(lambda x: jnp.broadcast_to(x[:, None], mask.shape), row),
    mask=mask,
    weights={
      name: _weight(reduce, own, count_of(count, name))
      for name, own in masks.items()
    },
    factors=None,
  )
  shared = Shared(
    heads={name: head for name, (_, head) in teachers.items()},
    coefs={name: term.coef for name, term in terms.items()},
    temperature=temperature,
  )
  make_batch = functools.partial(_make_batch, vocab_size)
  if any(term_reads(term).scope != 'token' for term in terms.values()):
    collect = _make_collect(make_batch, terms, stats_target)
    inputs = student_hidden, student_head, tokens, shared
    stats = collect_chunks(collect, size, *jax.lax.stop_gradient(inputs))
    tokens = tokens._replace(factors=term_factors(terms, stats, masks))
  options = stats_target, stats_rows, with_stats
  chunk_loss = _make_chunk_loss(make_batch, terms, *options)
  loss, sums = sum_chunks(
    chunk_loss, size, student_hidden, student_head, tokens, shared
  )
  counts = {f'loss/{name}': jnp.sum(own) for name, own in masks.items()}
  of_stats = jnp.sum(narrowed(mask, stats_rows, row))
  metrics = {k: (x, counts.get(k, of_stats)) for k, x in sums.items()}
  return loss, jax.lax.stop_gradient(metrics)


def _weight(reduce, mask, count):
  """Each token's weight in a reduction, its gradient since it is linear."""
  return jax.grad(lambda x: reduce(x, mask, count))(jnp.zeros(mask.shape))


def _make_batch(vocab_size, logits, tokens, shared):
  """The log-probs of a chunk, in what an objective reads."""
  rows = min(x.shape[-1] for x in (logits.student, *logits.teachers.values()))
  real = jnp.arange(rows) < vocab_size

  def normalise(x):
    x = x[:, :rows]
    if vocab_size < rows:
      x = jnp.where(real[None, :], x, -jnp.inf)
    return log_probs(x, temperature=shared.temperature)

  logps = {name: normalise(x) for name, x in logits.teachers.items()}
  student_logp = normalise(logits.student)
  return TokenBatch(
    student_logp,
    logps,
    token=tokens.token,
    sampler_logp=tokens.sampler_logp,
    rollout_logp=tokens.rollout_logp,
    row=tokens.row,
  )


def _make_collect(make_batch, terms, stats_target):
  """(logits, tokens, shared) -> the stats of a chunk, for each reader."""

  def collect(logits, tokens, shared):
    batch = make_batch(logits, tokens, shared)
    return term_stats(batch, terms, stats_target, tokens.mask)

  return collect


def _make_chunk_loss(make_batch, terms, stats_target, stats_rows, with_stats):
  """(logits, tokens, shared) -> (loss, sums of the metrics) of one chunk."""

  def chunk_loss(logits, tokens, shared):
    batch = make_batch(logits, tokens, shared)
    stats = term_stats(batch, terms, stats_target, tokens.mask)
    masks = term_masks(terms, tokens.row, tokens.mask)
    factors = tokens.factors or term_factors(terms, stats, masks)
    losses = per_token_losses(batch, terms, factors)
    losses = {k: blank(x, masks[k]) for k, x in losses.items()}
    loss = sum(
      c * jnp.sum(tokens.weights[k] * losses[k])
      for k, c in shared.coefs.items()
    )
    metrics = {f'loss/{name}': x for name, x in losses.items()}
    if with_stats:  # None, where there is no target, is an empty tree
      own = narrowed(tokens.mask, stats_rows, tokens.row)
      metrics |= blank(stats['']._asdict(), own)
      metrics |= _ratios(stats[''], own)
      # Of whole rows, or only for some weights.
      for name in ('mask', 'margin', 'in_top', *Row._fields):
        del metrics[name]
    return loss, {k: jnp.sum(x) for k, x in metrics.items() if x is not None}

  return chunk_loss


def _ratios(stats, mask):
  """The importance p / mu and its square.

  The squared mean of the first over the mean of the second is the effective
  share of the sample.
  """
  if stats.sampler_logp is None:
    return {}
  gap = jnp.minimum(stats.student_logp - stats.sampler_logp, 20.0)
  ratio = jnp.exp(gap)
  return blank({'ratio': ratio, 'ratio_squared': ratio**2}, mask)


def _check(models, terms, chunk_tokens, vocab_size):
  """Refuses wrong arguments at trace time; returns the rows to keep."""
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
