"""How much a token counts among the responses to its prompt."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jopd.losses.advantages import reward
from jopd.losses.groups import (
  group_sum,
  live_rows,
  row_mean,
  same_group,
)
from jopd.losses.token_stats import TokenStats, names_reward, reads, stat_named


@reads(
  'group',
  reward=lambda *, of, rows, **_: rows != 'every' or names_reward(of=of),
)
def group_softmax(
  stats: TokenStats,
  *,
  of: str,
  scale: float = 1.0,
  rows: str = 'every',
  least: float = 1.0,
) -> Float[Array, 'B T']:
  """Shares n softmax(scale * mean of a stat) over the rows of a group.

  Rows compete for their group's attention: of those that take part the weights
  sum to their number n, so their mean is 1; the others have 0. With the mean
  log-prob under a model, perplexity^(-scale) of that model decides.

  Args:
    stats: TokenStats of whole groups, [B, T].
    of: which of its fields, such as 'target_logp'.
    scale: 1 / tau; negative for the least instead of the most.
    rows: 'right', of at least the reward `least`, 'wrong' or 'every'.
    least: the reward that is enough.

  Returns:
    [B, T] weights >= 0, the same for all tokens of a row.

  Gradients: none; a weight is a constant.
  Numerics: a single row has weight 1.
  Raises: ValueError when there is no such stat or rows, or nobody graded.
  References: SCOPE, arXiv 2604.10688. On wrong responses the distillation, of
    'target_logp', scale 1 / tau; on right ones imitation, of 'student_logp',
    scale -1 / tau, so that unlikely ones weigh more. The released code has the
    opposite sign on the latter; this follows the formula of its page.

  Example: perplexities 2 and 4, so 2/3 and 1/3 of two rows.
    >>> stats = TokenStats(
    ...   target_logp=jnp.log(jnp.array([[1 / 2], [1 / 4]])),
    ...   group=jnp.zeros((2, 1), int),
    ...   mask=jnp.ones((2, 1), bool),
    ... )
    >>> [round(float(w[0]), 4) for w in group_softmax(stats, of='target_logp')]
    [1.3333, 0.6667]
  """
  known = ('right', 'wrong', 'every')
  if rows not in known:
    raise ValueError(f'rows must be one of {known}, got {rows!r}')
  take = live_rows(stats)
  if rows != 'every':
    take &= (reward(stats)[:, 0] >= least) == (rows == 'right')
  same = same_group(stats) & take[None, :]
  logits = scale * row_mean(stats, stat_named(stats, of))
  most = jnp.max(jnp.where(same, logits[None, :], -jnp.inf), axis=1)
  shares = jnp.where(take, jnp.exp(logits - jnp.where(take, most, 0.0)), 0.0)
  total = jnp.where(take, group_sum(same, shares), 1.0)
  weight = jnp.sum(same, axis=1) * shares / total
  return jnp.broadcast_to(weight[:, None], stats.mask.shape)


@reads('group', reward=True)
def best_row(stats: TokenStats, *, least: float = 1.0) -> Float[Array, 'B T']:
  """The one row of a group to learn from: right, and near to the student.

  For several responses of teachers to one prompt, of which the stage names the
  better sources first. In this order: a right one before a wrong one; one of an
  earlier source; the one with most tokens among the student's top 16.

  Args:
    stats: TokenStats of whole groups, [B, T], with a target.
    least: the reward that makes a response right.

  Returns:
    [B, T] weights: at the chosen row the number of the group's rows that count,
    so that `sequence_mean` is the mean over what was chosen; 0 elsewhere.

  Gradients: none; a weight is a constant.
  Raises: ValueError when nobody graded, or there is no target.
  References: BRTS, arXiv 2605.09725. Its tiers: two responses of the teacher,
    and if both are wrong one that was told the answer, if that is right, or
    else the nearest of the two. The overlap of the released code is with the
    student's top tokens at the same places; here the student reads the
    teacher's prefix there.

  Example: both are right, and the second is more familiar.
    >>> stats = TokenStats(
    ...   in_top=jnp.array([[0.0, 1.0], [1.0, 1.0]]),
    ...   reward=jnp.ones((2, 2)),
    ...   source=jnp.ones((2, 2), int),
    ...   group=jnp.zeros((2, 2), int),
    ...   mask=jnp.ones((2, 2), bool),
    ... )
    >>> best_row(stats)[:, 0].tolist()
    [0.0, 2.0]
  """
  same = same_group(stats)
  # Shares are at most 1, so each rank outdoes all below it.
  rank = row_mean(stats, stat_named(stats, 'in_top')) - 2.0 * stats.source[:, 0]
  rank += jnp.where(reward(stats)[:, 0] >= least, 1e4, 0.0)
  best = jnp.argmax(jnp.where(same, rank[None, :], -jnp.inf), axis=1)
  chosen = (best == jnp.arange(len(best))) & live_rows(stats)
  weight = jnp.where(chosen, jnp.sum(same, axis=1), 0).astype(jnp.float32)
  return jnp.broadcast_to(weight[:, None], stats.mask.shape)
