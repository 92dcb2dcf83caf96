"""How much a token counts among those of the batch."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float
from jaxtyping import ScalarLike as Scalar

from jopd.losses.token_stats import TokenStats, names_reward, reads, stat_named
from jopd.losses.validation import check_range


@reads('batch', reward=names_reward)
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
    >>> stats = TokenStats(
    ...   student_entropy=jnp.array([3.0, 1.0, 9.0, 2.0]),
    ...   mask=jnp.array([True, True, False, True]),
    ... )
    >>> top_fraction(stats, of='student_entropy', fraction=2 / 3).tolist()
    [1.0, 0.0, 0.0, 1.0]
  """
  return _largest(stats, stat_named(stats, of), fraction)


@reads('batch')
def top_informative(
  stats: TokenStats, *, fraction: Scalar
) -> Float[Array, '*B']:
  """1 at the fraction of tokens with the largest h + q - h q: TIP's soft or.

  h grows with the student's entropy, q with its reverse KL to the target, each
  as 1 - exp(-nats), in [0, 1): a token is worth learning where the student
  hesitates, or where it is sure and wrong. Divide the coefficient by fraction,
  or take `normalized`, for a mean over those that are left.

  Args:
    stats: TokenStats of the batch, [B, T], with a target.
    fraction: in (0, 1], may be traced. 1 keeps every token.

  Returns:
    [*B] weights, 0 or 1.

  Gradients: none; a weight is a constant.
  Raises: ValueError when fraction is outside (0, 1].
  References: TIP, Token Importance in On-Policy Distillation, arXiv 2604.14084,
    known to us by its abstract; how it normalises h and q was not found, and
    its released code samples by another score.

  Example: unsure; sure and wrong; sure and right.
    >>> stats = TokenStats(
    ...   student_entropy=jnp.array([1.0, 0.0, 0.0]),
    ...   reverse_kl=jnp.array([0.0, 2.0, 0.1]),
    ...   mask=jnp.ones(3, bool),
    ... )
    >>> top_informative(stats, fraction=2 / 3).tolist()
    [1.0, 1.0, 0.0]
  """
  # (1 - e^-H) or (1 - e^-KL) is 1 - e^-(H + KL): the order is that of the sum.
  score = stats.student_entropy + stat_named(stats, 'reverse_kl')
  return _largest(stats, score, fraction)


@reads('batch')
def normalized(
  stats: TokenStats, *, weight: Callable[[TokenStats], Float[Array, '*B']]
) -> Float[Array, '*B']:
  """A weight divided by its mean over the batch, so that tokens count 1 on it.

  With a weight of 0 or 1 the loss is then a mean over the tokens that are left.

  Args:
    stats: TokenStats of the batch, [B, T].
    weight: TokenStats -> [B, T], >= 0.

  Returns:
    [*B] weights of mean 1 over the tokens that count; zeros if all are.

  Gradients: none; a weight is a constant.

  Example:
    >>> stats = TokenStats(
    ...   mask=jnp.array([True, True, False]),
    ... )
    >>> half = lambda stats: jnp.array([1.0, 0.0, 1.0])
    >>> normalized(stats, weight=half).tolist()
    [2.0, 0.0, 2.0]
  """
  each = weight(stats)
  mean = jnp.mean(each, where=stats.mask)
  return each / jnp.where(mean > 0, mean, 1.0)


def _largest(stats: TokenStats, value, fraction: Scalar):
  """1 at the given fraction of the tokens that count, by their value."""
  check_range('(0, 1]', fraction=fraction)
  value = jnp.where(stats.mask, value, -jnp.inf)
  # A rank and not an interpolated quantile: the same threshold on any mesh.
  descending = -jnp.sort(-value.ravel())
  kept = jnp.round(fraction * jnp.sum(stats.mask)).astype(int)
  threshold = descending[jnp.maximum(kept - 1, 0)]
  return (stats.mask & (value >= threshold)).astype(jnp.float32)
