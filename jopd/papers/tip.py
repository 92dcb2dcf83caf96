"""TIP: Token Importance in On-Policy Distillation, arXiv 2604.14084.

We know the paper by its abstract. How it normalises entropy and divergence was
not found, and its released code samples by another score.
"""

from jaxtyping import Array, Float
from jaxtyping import ScalarLike as Scalar

from jopd.losses.token_stats import TokenStats, reads, stat_named
from jopd.losses.weights import top_fraction


@reads('batch')
def top_informative(
  stats: TokenStats, *, fraction: Scalar
) -> Float[Array, '*B']:
  """1 at the fraction of tokens with the largest h + q - h q, a soft or.

  h = 1 - exp(-entropy of the student), q = 1 - exp(-reverse KL), both in [0,
  1): a token is informative where the student is uncertain, or certain and
  wrong. Divide the coefficient by fraction, or use `normalized`, for a mean
  over the selected tokens.

  Args:
    stats: TokenStats of the batch, [B, T], with a target.
    fraction: in (0, 1], may be traced. 1 keeps every token.

  Returns:
    [*B] weights, 0 or 1.

  Gradients: none; a weight is a constant.
  Raises: ValueError when fraction is outside (0, 1].
  References: arXiv 2604.14084.

  Example: uncertain; certain and wrong; certain and right.
    >>> import jax.numpy as jnp
    >>> stats = TokenStats(
    ...   student_entropy=jnp.array([1.0, 0.0, 0.0]),
    ...   reverse_kl=jnp.array([0.0, 2.0, 0.1]),
    ...   mask=jnp.ones(3, bool),
    ... )
    >>> top_informative(stats, fraction=2 / 3).tolist()
    [1.0, 1.0, 0.0]
  """
  # (1 - e^-H) or (1 - e^-KL) is 1 - e^-(H + KL): the order is that of the sum.
  score = lambda stats: stats.student_entropy + stat_named(stats, 'reverse_kl')
  return top_fraction(stats, of=score, fraction=fraction)
