"""SCOPE: rows of a group share its weight by perplexity, arXiv 2604.10688."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jopd.losses.advantages import reward
from jopd.losses.token_stats import (
  TokenStats,
  group_sum,
  live_rows,
  names_reward,
  reads,
  row_mean,
  same_group,
  stat_named,
)


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
  """The shares n softmax(scale * mean of a stat) over the n rows of a group.

  The weights of the rows that take part have mean 1; the other rows have 0.
  With the mean log-prob under a model, perplexity^(-scale) of that model
  decides.

  Args:
    stats: TokenStats of whole groups, [B, T].
    of: which of its fields, such as 'target_logp'.
    scale: 1 / tau; negative prefers small values.
    rows: which take part: 'right', of a reward of at least `least`, 'wrong' or
      'every'.
    least: the reward that makes a response right.

  Returns:
    [B, T] weights >= 0, the same for all tokens of a row.

  Gradients: none; a weight is a constant.
  Numerics: a single row has weight 1.
  Raises: ValueError when there is no such stat or rows, or there are no
    rewards.
  References: arXiv 2604.10688. Wrong responses are distilled, with weights of
    'target_logp', scale 1 / tau; right ones are imitated, of 'student_logp',
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
  largest = jnp.max(jnp.where(same, logits[None, :], -jnp.inf), axis=1)
  shares = jnp.where(take, jnp.exp(logits - jnp.where(take, largest, 0.0)), 0.0)
  total = jnp.where(take, group_sum(same, shares), 1.0)
  weight = jnp.sum(same, axis=1) * shares / total
  return jnp.broadcast_to(weight[:, None], stats.mask.shape)
