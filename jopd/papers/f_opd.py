"""f-OPD: old responses weighted by freshness, arXiv 2605.17862.

We know the paper from notes. Its second drift, of what a teacher returned long
ago, is 0 here, because teachers score when the student learns. Its test for
when a buffer is refreshed is left out.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float
from jaxtyping import ScalarLike as Scalar

from jopd.losses.token_stats import TokenStats, reads, row_mean, stat_named
from jopd.losses.validation import check_range


@reads('row', sampler=True)
def freshness(
  stats: TokenStats, *, alpha: Scalar = 1.0, least: Scalar = 0.0
) -> Float[Array, 'B T']:
  """Smaller weights for stale responses, max(f - least, 0).

  f = exp(-alpha sqrt(D)) / (staleness + 1). D is how far the student has moved
  since it sampled the response: the mean over its tokens of r - 1 - log r, with
  r = p / mu, an unbiased estimate of KL(mu || p) that is never negative. For
  replayed responses; without staleness and drift f is 1.

  Args:
    stats: TokenStats of whole rows, [B, T], with staleness.
    alpha: >= 0, how much drift counts. May be traced.
    least: in [0, 1), f from which down the weight is 0. May be traced.

  Returns:
    [B, T] weights in [0, 1], the same along a row.

  Gradients: none; a weight is a constant.
  Raises: ValueError when a setting is out of range, or there is no staleness.
  References: arXiv 2605.17862; its settings are not known to us.

  Example: no drift, and one update since.
    >>> stats = TokenStats(
    ...   student_logp=jnp.zeros((1, 2)),
    ...   sampler_logp=jnp.zeros((1, 2)),
    ...   staleness=jnp.ones((1, 2)),
    ...   mask=jnp.ones((1, 2), bool),
    ... )
    >>> freshness(stats).tolist(), freshness(stats, least=0.25).tolist()
    ([[0.5, 0.5]], [[0.25, 0.25]])
  """
  check_range('[0, inf)', alpha=alpha)
  check_range('[0, 1)', least=least)
  log_ratio = jnp.minimum(stats.student_logp - stats.sampler_logp, 20.0)
  # Never negative, whatever the rounding.
  drift = jnp.maximum(jnp.expm1(log_ratio) - log_ratio, 0.0)
  mean = row_mean(stats, drift)[:, None]
  fresh = jnp.exp(-alpha * jnp.sqrt(mean))
  fresh /= stat_named(stats, 'staleness') + 1
  return jnp.maximum(fresh - least, 0.0)
