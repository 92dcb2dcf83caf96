"""A loss is a sum of terms, each an objective with a weight and a coefficient.

loss = sum over terms of coef * reduce(weight * objective)
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
from jaxtyping import ScalarLike as Scalar

from jopd.losses.aggregation import token_mean
from jopd.losses.objectives import Objective, WithAdvantage
from jopd.losses.targets import teacher
from jopd.losses.token_stats import (
  Reads,
  Row,
  TokenBatch,
  TokenStats,
  batch_stats,
  reads_of,
)
from jopd.losses.weights import uniform


class Term(NamedTuple):
  """One summand of the loss: coef * reduce(weight * objective).

  Attributes:
    objective: TokenBatch -> [*B] losses.
    weight: TokenStats -> [*B], how much each token counts; a constant to the
      gradient.
    coef: a number or a traced scalar, so that a schedule does not retrace.
    rows: Row -> [*B] bool, the rows that it learns from, see `rows_where`; the
      denominator counts their tokens alone. None: all rows.
  """

  objective: Objective
  weight: Callable[[TokenStats], Float[Array, '*B']] = uniform
  coef: Scalar = 1.0
  rows: Callable[[Row], Bool[Array, '*B']] | None = None


class Factors(NamedTuple):
  """What a term takes from the stats, constants.

  Attributes:
    weight: [*B], multiplies the loss.
    advantage: [*B], or a tree of these, if the objective is `WithAdvantage`;
      else None.
  """

  weight: Float[Array, '*B']
  advantage: Any


def term_stats(
  batch: TokenBatch,
  terms: Mapping[str, Term],
  stats_target: Callable,
  mask: Bool[Array, '*B'],
) -> dict[str, TokenStats]:
  """All stats that the terms' weights and advantages read.

  The key '' is for the weights, the name of a term for its advantage.
  """
  with_advantage = {
    name: term.objective.target
    for name, term in terms.items()
    if isinstance(term.objective, WithAdvantage)
  }
  targets = {'': stats_target} | with_advantage
  return {n: batch_stats(batch, t, mask) for n, t in targets.items()}


def term_masks(
  terms: Mapping[str, Term], row: Row | None, mask: Bool[Array, '*B']
) -> dict[str, Bool[Array, '*B']]:
  """The tokens that each term learns from; see `narrowed`."""
  return {name: narrowed(mask, t.rows, row) for name, t in terms.items()}


def narrowed(
  mask: Bool[Array, '*B'], where: Callable | None, row: Row | None
) -> Bool[Array, '*B']:
  """A mask on some of its rows.

  Args:
    mask: [B, T] or [*B], the tokens that count at all.
    where: Row -> bool, which rows; None for all.
    row: Row of [B], or of the shape of the mask.

  Raises: ValueError when there is a `where` and no row.
  """
  if where is None:
    return mask
  if row is None:
    raise ValueError("a term has 'rows', and the batch has no row metadata")
  rows = where(row)
  return mask & rows.reshape(rows.shape + (1,) * (mask.ndim - rows.ndim))


def term_factors(
  terms: Mapping[str, Term],
  stats: Mapping[str, TokenStats],
  masks: Mapping[str, Bool[Array, '*B']],
) -> dict[str, Factors]:
  """Weights and advantages of each term from its stats, 0 off its tokens."""

  def one(name, term):
    mask = masks[name]
    weight, advantage = term.weight(stats['']._replace(mask=mask)), None
    if name in stats:
      advantage = term.objective.advantage(stats[name]._replace(mask=mask))
    # A weight may be one number for all.
    return blank(Factors(jnp.broadcast_to(weight, mask.shape), advantage), mask)

  return {name: one(name, term) for name, term in terms.items()}


def count_of(count, name: str) -> Scalar:
  """The denominator of a term; `count` is one for all, or one for each."""
  return count[name] if isinstance(count, Mapping) else count


def term_reads(term: Term) -> Reads:
  """What the weight and the objective of a term read."""
  objective = reads_of(term.objective)
  if not isinstance(term.objective, WithAdvantage):
    # Without an advantage an objective reads single tokens.
    objective = objective._replace(scope='token')
  return reads_of(term.weight) | objective


def blank(tree, mask: Bool[Array, '*B']):
  """The arrays of a tree, [*B, ...], set to zero where the mask is False.

  Done before any arithmetic: a NaN that is multiplied by a zero weight, or that
  meets a zero cotangent on the way back, is still a NaN.

  Gradients: identity where the mask is True, exactly 0 elsewhere.
  """

  def one(x):
    where = mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))
    return jnp.where(where, x, jnp.zeros_like(x))

  return jax.tree.map(one, tree)


def per_token_losses(
  batch: TokenBatch, terms: Mapping[str, Term], factors: Mapping[str, Factors]
) -> dict[str, Float[Array, '*B']]:
  """Weight * objective of each term, before coefficient and reduction.

  Args:
    batch: TokenBatch.
    terms: the terms, by name.
    factors: their weights and advantages.

  Returns:
    [*B] for each name.

  Gradients: to batch.student_logp, through the objectives only.
  """

  def one(term, weight, advantage):
    if advantage is None:
      loss = term.objective(batch)
    else:
      loss = term.objective.loss(batch, advantage)
    return jax.lax.stop_gradient(weight) * loss

  return {name: one(term, *factors[name]) for name, term in terms.items()}


def distill_loss(
  batch: TokenBatch,
  terms: Mapping[str, Term],
  *,
  mask: Bool[Array, 'B T'],
  reduce: Callable = token_mean,
  count: Scalar | Mapping[str, Scalar],
  stats_target: Callable = teacher,
) -> Float[Array, '']:
  """The loss, from log-probs: sum of coef * reduce(weight * objective).

  The plain definition, for other JAX code and for small vocabularies. It holds
  [B, T, V]; `distill_loss_chunked` has the same value and gradients without.

  Args:
    batch: TokenBatch of [B, T, ...].
    terms: the terms, by name.
    mask: [B, T], True counts. Other places may hold anything, NaN too.
    reduce: (per_token, mask, count) -> scalar, linear in per_token.
    count: the denominator of `reduce`, of the whole batch: micro-batches that
      share one count add up. By term where terms learn from different rows.
    stats_target: the target that the stats read by weights compare with. Not
      called when there is no teacher.

  Returns:
    A scalar: nats per token, with `token_mean` and divergences.

  Gradients: to batch.student_logp; exactly 0 where the mask is False.
  Raises: ValueError when terms is empty, or a target names no teacher.

  Example: one token of two, reverse KL 0.1308.
    >>> import jax.numpy as jnp
    >>> from jopd.losses import divergence, reverse_kl
    >>> p, q = jnp.array([[[0.25, 0.75]]]), jnp.array([[[0.5, 0.5]]])
    >>> batch = TokenBatch(
    ...   student_logp=jnp.log(p),
    ...   logps={'teacher': jnp.log(q)},
    ...   token=jnp.array([[1]]),
    ...   sampler_logp=jnp.array([[0.0]]),
    ... )
    >>> terms = {'opd': Term(divergence(reverse_kl))}
    >>> loss = distill_loss(batch, terms, mask=jnp.array([[True]]), count=1)
    >>> round(float(loss), 4)
    0.1308
  """
  if not terms:
    raise ValueError('expected at least one term, got none')
  batch = blank(batch, mask)
  masks = term_masks(terms, batch.row, mask)
  stats = term_stats(batch, terms, stats_target, mask)
  losses = per_token_losses(batch, terms, term_factors(terms, stats, masks))
  return sum(
    term.coef * reduce(losses[name], masks[name], count_of(count, name))
    for name, term in terms.items()
  )
