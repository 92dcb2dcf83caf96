"""Weights of tokens: (TokenStats) -> [*B], constants to the gradient.

What one paper alone needs is in `jopd.papers`.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float
from jaxtyping import ScalarLike as Scalar

from jopd.losses.token_stats import TokenStats, names_reward, reads, stat_named
from jopd.losses.validation import check_range


@reads('token')
def uniform(stats: TokenStats) -> Float[Array, '*B']:
  """Every token counts 1, [*B].

  Gradients: none; a weight is a constant.
  """
  return jnp.ones_like(stats.student_logp)


@reads('token', reward=names_reward)
def gate(
  stats: TokenStats,
  *,
  of: str,
  low: Scalar = -jnp.inf,
  high: Scalar = jnp.inf,
) -> Float[Array, '*B']:
  """1 where low <= stat <= high, 0 elsewhere.

  Args:
    stats: TokenStats.
    of: which of its fields, such as 'target_entropy', or 'log_ratio'.
    low: the least value that counts, in the field's unit.
    high: the largest.

  Returns:
    [*B] weights, 0 or 1.

  Gradients: none; a weight is a constant.
  Raises: ValueError when there is no such stat.

  Example: two nats of entropy pass, half a nat does not.
    >>> stats = TokenStats(target_entropy=jnp.array([2.0, 0.5]))
    >>> gate(stats, of='target_entropy', low=0.8).tolist()
    [1.0, 0.0]
  """
  value = stat_named(stats, of)
  return ((low <= value) & (value <= high)).astype(jnp.float32)


@reads('token', sampler=True)
def importance(
  stats: TokenStats, *, low: Scalar = 0.0, high: Scalar = 2.0
) -> Float[Array, '*B']:
  """Truncated importance, min(p / mu, high), and 0 below low.

  mu is the distribution that sampled the token. Corrects the expectation of a
  loss for rollouts that are not quite the student's: another precision, top-p,
  some updates ago. It corrects each token at its own prefix, not the prefix.

  Args:
    stats: TokenStats with the sampler's log-probs.
    low: tokens of a smaller ratio are dropped.
    high: the largest weight. The truncation is a bias that bounds the variance.

  Returns:
    [*B] weights in [0, high], without unit.

  Gradients: none; a weight is a constant. For the gradient of the ratio use a
    policy gradient with old_policy='sampler'.

  Example: ratios of 1/2 and 4.
    >>> stats = TokenStats(
    ...   student_logp=jnp.log(jnp.array([0.1, 0.8])),
    ...   sampler_logp=jnp.log(jnp.array([0.2, 0.2])),
    ... )
    >>> [round(float(w), 4) for w in importance(stats)]
    [0.5, 2.0]
  """
  ratio = jnp.exp(stats.student_logp - stats.sampler_logp)
  return jnp.where(ratio < low, 0.0, jnp.minimum(ratio, high))


@reads('batch', reward=names_reward)
def top_fraction(
  stats: TokenStats,
  *,
  of: str | Callable[[TokenStats], Float[Array, '*B']],
  fraction: Scalar,
) -> Float[Array, '*B']:
  """1 at the given fraction of the batch's tokens with the largest stat.

  The threshold is a quantile over all tokens of the batch. The sum of the
  weights is `fraction` of the tokens: divide the coefficient by it for a mean
  over the selected tokens.

  Args:
    stats: TokenStats of the batch, [B, T].
    of: which of its fields, such as 'student_entropy'; or TokenStats -> [*B].
    fraction: in (0, 1], may be traced. At least one token counts, and all that
      tie with the threshold.

  Returns:
    [*B] weights, 0 or 1.

  Gradients: none; a weight is a constant.
  Raises: ValueError when there is no such stat, or fraction is outside (0, 1].

  Example: of four tokens one is masked, and 2/3 of the others are two.
    >>> stats = TokenStats(
    ...   student_entropy=jnp.array([3.0, 1.0, 9.0, 2.0]),
    ...   mask=jnp.array([True, True, False, True]),
    ... )
    >>> top_fraction(stats, of='student_entropy', fraction=2 / 3).tolist()
    [1.0, 0.0, 0.0, 1.0]
  """
  check_range('(0, 1]', fraction=fraction)
  value = of(stats) if callable(of) else stat_named(stats, of)
  value = jnp.where(stats.mask, value, -jnp.inf)
  # A rank and not an interpolated quantile: the same threshold on any mesh.
  descending = -jnp.sort(-value.ravel())
  count = jnp.round(fraction * jnp.sum(stats.mask)).astype(int)
  threshold = descending[jnp.maximum(count - 1, 0)]
  return (stats.mask & (value >= threshold)).astype(jnp.float32)


@reads('batch')
def normalized(
  stats: TokenStats, *, weight: Callable[[TokenStats], Float[Array, '*B']]
) -> Float[Array, '*B']:
  """A weight divided by its mean over the batch.

  With a weight of 0 or 1 the loss is a mean over the selected tokens.

  Args:
    stats: TokenStats of the batch, [B, T].
    weight: TokenStats -> [B, T], >= 0.

  Returns:
    [*B] weights of mean 1 over the tokens that count; zeros if all are.

  Gradients: none; a weight is a constant.

  Example:
    >>> stats = TokenStats(mask=jnp.array([True, True, False]))
    >>> half = lambda stats: jnp.array([1.0, 0.0, 1.0])
    >>> normalized(stats, weight=half).tolist()
    [2.0, 0.0, 2.0]
  """
  each = weight(stats)
  mean = jnp.mean(each, where=stats.mask)
  return each / jnp.where(mean > 0, mean, 1.0)
