"""Prefix Teach, Suffix Fade, arXiv 2605.13643.

We know the paper by its abstract; the criterion is that of a port by others.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jopd.losses.token_stats import TokenStats, names_reward, reads, stat_named
from jopd.losses.validation import check_range


@reads('row', reward=names_reward)
def before_drop(
  stats: TokenStats, *, of: str = 'margin', segment: int = 16, least: int = 3
) -> Float[Array, 'B T']:
  """1 up to the place where a stat drops, 0 from there on.

  The stat is averaged over segments. One drop of these means is searched for,
  and accepted if it lowers the Bayesian information criterion: n log(RSS / n)
  plus log n for each parameter, one without a drop and three with one.

  Args:
    stats: TokenStats of whole rows, [B, T].
    of: which of its fields. 'margin': how well the target distinguishes the
      student's likeliest tokens.
    segment: tokens in each, >= 1; static.
    least: segments on either side of a drop, >= 1; static.

  Returns:
    [B, T] weights, 0 or 1; all 1 where there is no drop.

  Gradients: none; a weight is a constant.
  Numerics: variances are at least 1e-12, so equal segments show no drop.
  Raises: ValueError when segment or least is below 1, or there is no such stat.
  References: arXiv 2605.13643. There segments are sentences, here they have
    equal lengths. The form of the margin is ours.

  Example: three segments of 1, then three of 0.
    >>> stats = TokenStats(
    ...   margin=jnp.array([[1.0, 1.0, 1.0, 0.0, 0.0, 0.0]]),
    ...   mask=jnp.ones((1, 6), bool),
    ... )
    >>> before_drop(stats, segment=1).tolist()
    [[1.0, 1.0, 1.0, 0.0, 0.0, 0.0]]
  """
  check_range('[1, inf)', segment=segment, least=least)
  value = jnp.where(stats.mask, stat_named(stats, of), 0.0)
  # Slots that do not count belong to the segment of the last that does.
  index = jnp.maximum(jnp.cumsum(stats.mask, axis=1) - 1, 0) // segment
  segments = -(-value.shape[1] // segment)
  row = jnp.arange(len(value))[:, None]
  add = lambda x: jnp.zeros((len(value), segments)).at[row, index].add(x)
  tokens = add(stats.mask.astype(jnp.float32))
  means = add(value) / jnp.maximum(tokens, 1)
  first = _first_after_drop(means, tokens > 0, least)
  return (index < first[:, None]).astype(jnp.float32)


def _first_after_drop(means, real, least):
  """[B] the segment that a row drops at; their number where it does not."""
  count = jnp.sum(real, axis=1, keepdims=True)
  # Around the mean, or squares would cancel in float32.
  middle = jnp.sum(jnp.where(real, means, 0.0), axis=1, keepdims=True)
  centred = jnp.where(real, means - middle / jnp.maximum(count, 1), 0.0)
  left = jnp.arange(1, means.shape[1] + 1)[None, :]
  right = count - left
  sum_left = jnp.cumsum(centred, axis=1)
  total = jnp.sum(jnp.square(centred), axis=1, keepdims=True)
  # Of centred means, the right side sums to minus the left one.
  gain = jnp.square(sum_left) * (1 / left + 1 / jnp.maximum(right, 1))
  allowed = (left >= least) & (right >= least) & (sum_left > 0)
  best = jnp.argmax(jnp.where(allowed, gain, -1.0), axis=1)[:, None]
  gained = jnp.take_along_axis(gain, best, axis=1)
  size = jnp.maximum(count, 1)
  log_variance = lambda rss: jnp.log(jnp.maximum(rss / size, 1e-12))
  better = size * (log_variance(total) - log_variance(total - gained))
  dropped = jnp.any(allowed, axis=1) & (better > 2 * jnp.log(size))[:, 0]
  return jnp.where(dropped, best[:, 0] + 1, means.shape[1])
