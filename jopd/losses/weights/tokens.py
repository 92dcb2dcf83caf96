"""How much a token counts, by itself."""

import jax.numpy as jnp
from jaxtyping import Array, Float
from jaxtyping import ScalarLike as Scalar

from jopd.losses.token_stats import TokenStats, names_reward, reads, stat_named


@reads('token')
def uniform(stats: TokenStats) -> Float[Array, '*B']:
  """Every token counts 1.

  Args:
    stats: TokenStats.

  Returns:
    [*B] ones.

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
  a few updates ago. It corrects each token at its own prefix, not the prefix.

  Args:
    stats: TokenStats with the sampler's log-probs.
    low: tokens of a smaller ratio are dropped.
    high: the largest weight. The truncation is a bias that bounds the variance.

  Returns:
    [*B] weights in [0, high], without unit.

  Gradients: none; a weight is a constant. For the ratio's own gradient old_policy a
    policy gradient to the sampler.

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
