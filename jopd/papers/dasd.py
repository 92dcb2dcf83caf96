"""DASD: Direction-Adaptive Self-Distillation, arXiv 2605.22263.

We know the paper from notes.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from jaxtyping import ScalarLike as Scalar

from jopd.losses.advantages import group_advantage, log_ratio
from jopd.losses.token_stats import TokenStats, reads
from jopd.losses.validation import check_range


@reads('row')
def entropy_directed(
  stats: TokenStats,
  *,
  beta: Scalar,
  quantile: Scalar = 0.2,
  advantage: Callable[[TokenStats], Float[Array, 'B T']] = group_advantage,
) -> Float[Array, 'B T']:
  """An advantage, and a pull whose direction depends on the entropy.

  A + beta tanh((tau - H) / sigma) sigmoid(|d| - 1) d, with d the log-ratio over
  its mean size in the row, H the student's entropy, tau a quantile of it in the
  row and sigma its mean absolute deviation there. Where the student is certain
  it is pulled to the target, where it is uncertain away from it; the sigmoid
  damps small differences.

  Args:
    stats: TokenStats of whole rows, [B, T], with a target and rewards.
    beta: >= 0, may be traced. 0 is the advantage itself.
    quantile: in (0, 1], the share of the row's tokens with an entropy up to
      tau. May be traced.
    advantage: TokenStats -> [B, T], the advantage.

  Returns:
    [B, T] advantages, in the unit of the advantage.

  Gradients: none.
  Numerics: 1e-6 is added to sigma and to the mean size, so a row of one token,
    or of equal ones, is well defined.
  Raises: ValueError when beta or quantile is out of range, or there is no
    target, or no reward.
  References: arXiv 2605.22263, with rho = 0.2. Its beta was not found, nor
    whether d is scaled by the row, as here, or by the batch.

  Example: of two tokens the first is more certain, tau is its entropy, so it
  has no pull; the second, 2 deviations above, is pushed by tanh(-2) sigmoid(0).
    >>> stats = TokenStats(
    ...   student_logp=jnp.zeros((1, 2)),
    ...   target_logp=jnp.array([[0.5, 0.5]]),
    ...   mask=jnp.ones((1, 2), bool),
    ...   student_entropy=jnp.array([[0.0, 1.0]]),
    ... )
    >>> none = lambda stats: jnp.zeros((1, 2))
    >>> pull = entropy_directed(stats, beta=1.0, quantile=0.5, advantage=none)
    >>> [round(c, 4) for c in pull[0].tolist()]
    [0.0, -0.482]
  """
  check_range('[0, inf)', beta=beta)
  check_range('(0, 1]', quantile=quantile)
  entropy, ratio, mask = stats.student_entropy, log_ratio(stats), stats.mask
  mean = lambda x: jnp.mean(
    x, axis=1, keepdims=True, where=mask | ~jnp.any(mask, 1, keepdims=True)
  )
  ascending = jnp.sort(jnp.where(mask, entropy, jnp.inf), axis=1)
  rank = jnp.ceil(quantile * jnp.sum(mask, axis=1, keepdims=True)).astype(int)
  middle = jnp.take_along_axis(ascending, jnp.maximum(rank - 1, 0), axis=1)
  spread = mean(jnp.abs(entropy - mean(entropy))) + 1e-6
  size = mean(jnp.abs(ratio)) + 1e-6
  pull = jnp.tanh((middle - entropy) / spread)
  pull *= jax.nn.sigmoid(jnp.abs(ratio) / size - 1)
  return advantage(stats) + beta * jnp.where(mask, pull * ratio / size, 0.0)
