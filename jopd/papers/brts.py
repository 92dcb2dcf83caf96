"""BRTS: the best of several responses of the teacher, arXiv 2605.09725."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jopd.losses.advantages import reward
from jopd.losses.token_stats import (
  TokenStats,
  live_rows,
  reads,
  row_mean,
  same_group,
  stat_named,
)


@reads('group', reward=True)
def best_row(stats: TokenStats, *, least: float = 1.0) -> Float[Array, 'B T']:
  """Selects one row of each group: correct, and near to the student.

  For several responses of teachers to one prompt, of response sources that are
  listed from best to worst. The order is: a correct row before a wrong one;
  then a row of an earlier source; then the row that has most tokens among the
  student's top 16.

  Args:
    stats: TokenStats of whole groups, [B, T], with a target.
    least: the reward that makes a response correct.

  Returns:
    [B, T] weights: at the selected row the number of the group's rows that
    count, so that `sequence_mean` is the mean over selected rows; 0 elsewhere.

  Gradients: none; a weight is a constant.
  Raises: ValueError when there are no rewards, or no target.
  References: arXiv 2605.09725. Its tiers: two responses of the teacher; if both
    are wrong, one written with the answer in the prompt, if that is correct;
    else the nearer of the two. The overlap of the released code is with the
    student's top tokens at the same places; here the student reads the
    teacher's prefix there.

  Example: both are correct, and the second is nearer to the student.
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
  # Shares are at most 1, so each criterion outranks all below it.
  rank = row_mean(stats, stat_named(stats, 'in_top')) - 2.0 * stats.source[:, 0]
  rank += jnp.where(reward(stats)[:, 0] >= least, 1e4, 0.0)
  best = jnp.argmax(jnp.where(same, rank[None, :], -jnp.inf), axis=1)
  selected = (best == jnp.arange(len(best))) & live_rows(stats)
  weight = jnp.where(selected, jnp.sum(same, axis=1), 0).astype(jnp.float32)
  return jnp.broadcast_to(weight[:, None], stats.mask.shape)
