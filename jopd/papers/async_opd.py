"""AsyncOPD: corrections of stale rollouts, arXiv 2606.24143.

We know the paper by its abstract. Of its corrections `losses.importance` and
the old policy 'sampler' are in the library; this is the third.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jopd.losses.token_stats import TokenStats, reads
from jopd.losses.validation import check_range


@reads('row', sampler=True)
def prefix_importance(
  stats: TokenStats, *, high: float = 2.0
) -> Float[Array, 'B T']:
  """Importance of the whole prefix, min(prod over u <= t of p / mu, high).

  `importance` corrects each token at its own prefix; this weight also corrects
  how often the prefix occurs. Its variance grows with the length: use it for
  short responses, or a small staleness.

  Args:
    stats: TokenStats of whole rows, [B, T], with the sampler's log-probs.
    high: > 0, the largest weight; a bias that bounds the variance.

  Returns:
    [B, T] weights in [0, high], without unit.

  Gradients: none; a weight is a constant.
  Raises: ValueError when high is not above 0.
  References: arXiv 2606.24143, importance over several steps; the truncation is
    ours.

  Example: ratios of 1/2, 1/2 and 12 multiply to 3.
    >>> stats = TokenStats(
    ...   student_logp=jnp.log(jnp.array([[0.5, 0.5, 12.0]])),
    ...   sampler_logp=jnp.zeros((1, 3)),
    ...   mask=jnp.ones((1, 3), bool),
    ... )
    >>> [round(w, 4) for w in prefix_importance(stats).tolist()[0]]
    [0.5, 0.25, 2.0]
  """
  check_range('(0, inf)', high=high)
  log_ratio = stats.student_logp - stats.sampler_logp
  total = jnp.cumsum(jnp.where(stats.mask, log_ratio, 0.0), axis=1)
  return jnp.exp(jnp.minimum(total, jnp.log(high)))
