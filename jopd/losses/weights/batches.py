"""How much a token counts among those of the batch."""

import jax.numpy as jnp
from jaxtyping import Array, Float
from jaxtyping import ScalarLike as Scalar

from jopd.losses.ranges import check_range
from jopd.losses.stats import TokenStats, stat_named


def top_fraction(
  stats: TokenStats, *, of: str, fraction: Scalar
) -> Float[Array, '*B']:
  """1 at the given fraction of the batch's tokens with the largest stat.

  The threshold is a quantile over all tokens that count, so this weight looks
  at the whole batch. The sum of the weights is `fraction` of the tokens: divide
  the coefficient by it for a mean over those that are left.

  Args:
    stats: TokenStats of the batch, [B, T].
    of: which of its fields, such as 'student_entropy'.
    fraction: in (0, 1], may be traced. At least one token counts, and all that
      tie with the threshold.

  Returns:
    [*B] weights, 0 or 1.

  Gradients: none; a weight is a constant.
  Raises: ValueError when there is no such stat, or fraction is outside (0, 1].

  Example: of four tokens one does not count, and 2/3 of the others are two.
    >>> stats = TokenStats(**dict.fromkeys(TokenStats._fields))._replace(
    ...   student_entropy=jnp.array([3.0, 1.0, 9.0, 2.0]),
    ...   mask=jnp.array([True, True, False, True]),
    ... )
    >>> top_fraction(stats, of='student_entropy', fraction=2 / 3).tolist()
    [1.0, 0.0, 0.0, 1.0]
  """
  check_range('(0, 1]', fraction=fraction)
  value = jnp.where(stats.mask, stat_named(stats, of), -jnp.inf)
  # A rank and not an interpolated quantile: the same threshold on any mesh.
  descending = -jnp.sort(-value.ravel())
  kept = jnp.round(fraction * jnp.sum(stats.mask)).astype(int)
  threshold = descending[jnp.maximum(kept - 1, 0)]
  return (stats.mask & (value >= threshold)).astype(jnp.float32)
