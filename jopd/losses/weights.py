"""How much each token counts: (TokenStats) -> [*B], under stop-gradient."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jopd.losses.stats import TokenStats


def uniform(stats: TokenStats) -> Float[Array, '*B']:
  """Every token counts 1.

  Args:
    stats: TokenStats.

  Returns:
    [*B] ones.

  Gradients: none; a weight is a constant.
  """
  return jnp.ones_like(stats.student_logp)
