"""Sums over rows and over groups, for what looks at the responses to a prompt.

A group is the rows of one number, wherever they stand: [B, B] comparisons of
numbers, no order, and the same result on any mesh.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jopd.losses.token_stats import TokenStats, reads


def live_rows(stats: TokenStats) -> Bool[Array, ' B']:
  """The rows that have a token which counts; no gradient."""
  return jnp.any(stats.mask, axis=1)


def row_sum(stats: TokenStats, x: Float[Array, 'B T']) -> Float[Array, ' B']:
  """The sum over the tokens of each row that count; gradient to these of x."""
  return jnp.sum(jnp.where(stats.mask, x, 0.0), axis=1)


def row_mean(stats: TokenStats, x: Float[Array, 'B T']) -> Float[Array, ' B']:
  """The mean over the tokens of each row that count, 0 where none does.

  Gradients: to these tokens of x, over their number.
  """
  return row_sum(stats, x) / jnp.maximum(jnp.sum(stats.mask, axis=1), 1)


def same_group(stats: TokenStats) -> Bool[Array, 'B B']:
  """Which rows answer the same prompt, of those that count.

  Gradients: none.
  Raises: ValueError when nobody said which rows make a group.
  """
  if stats.group is None:
    raise ValueError(
      'it looks at the responses to one prompt, and nothing says which these'
      ' are: give the rows their groups'
    )
  group, live = stats.group[:, 0], live_rows(stats)
  same = group[:, None] == group[None, :]
  return same & live[:, None] & live[None, :]


def group_sum(same: Bool[Array, 'B B'], x: Float[Array, ' B']):
  """For each row the sum over its group, [B]; gradient to all of its rows."""
  return jnp.sum(jnp.where(same, x[None, :], 0.0), axis=1)


@reads('group', reward=lambda *, by, **_: by == 'reward')
def preferred(
  stats: TokenStats, *, beta: float, by: str
) -> tuple[Float[Array, 'B T'], Float[Array, 'B T']]:
  """Value and slope of the mean of -log sigmoid(m) over the pairs of a group.

  Args:
    stats: TokenStats of whole groups, [B, T], with a target.
    beta: of m = beta (r_better - r_worse), r the log-ratio of a row.
    by: 'source' or 'reward', what makes one row better than another.

  Returns:
    Two [B, T]: what each token says of the loss, so that every row has all of
    it; the derivative to the log-prob of each token, times the rows of a group.
  """
  same = same_group(stats)
  ratio = row_sum(stats, stats.student_logp - stats.target_logp)
  score = stats.source[:, 0] > 0 if by == 'source' else stats.reward[:, 0]
  better = same & (score[:, None] > score[None, :])
  margin = beta * (ratio[:, None] - ratio[None, :])
  doubt = jnp.where(better, jax.nn.sigmoid(-margin), 0.0)
  losses = jnp.where(better, jax.nn.softplus(-margin), 0.0)
  pairs = group_sum(same, jnp.sum(better, axis=1, dtype=jnp.float32))
  pairs = jnp.maximum(pairs, 1.0)
  rows = jnp.sum(same, axis=1, dtype=jnp.float32)
  value = group_sum(same, jnp.sum(losses, axis=1)) / pairs
  slope = -beta * (jnp.sum(doubt, axis=1) - jnp.sum(doubt, axis=0))
  slope *= rows / pairs
  tokens = jnp.maximum(jnp.sum(stats.mask, axis=1), 1)
  each = lambda x: jnp.broadcast_to(x[:, None], stats.mask.shape)
  return each(value / tokens), each(slope)
