"""Does On-Policy Distillation Really Distill?, arXiv 2608.31046.

The control without a teacher. We know the paper by its abstract.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float
from jaxtyping import ScalarLike as Scalar

from jopd.losses.token_stats import TokenStats, reads
from jopd.losses.validation import check_range


@reads('token')
def against_unlikely(
  stats: TokenStats, *, below: Scalar, value: Scalar = -1.0
) -> Float[Array, '*B']:
  """A fixed negative advantage for tokens of low probability.

  It sharpens the student, right or wrong. A method that does no better than
  this control has not been shown to distil.

  Args:
    stats: TokenStats; a target is not read.
    below: probability in (0, 1]; tokens less likely than this get `value`. May
      be traced.
    value: their advantage, below 0. May be traced.

  Returns:
    [*B] advantages, `value` or 0.

  Gradients: none.
  Raises: ValueError when below is outside (0, 1] or value is not below 0.
  References: arXiv 2608.31046; its abstract has neither threshold nor size.

  Example:
    >>> stats = TokenStats(student_logp=jnp.log(jnp.array([0.1, 0.6])))
    >>> against_unlikely(stats, below=0.5).tolist()
    [-1.0, 0.0]
  """
  check_range('(0, 1]', below=below)
  check_range('(-inf, 0)', value=value)
  return jnp.where(stats.student_logp < jnp.log(below), value, 0.0)
