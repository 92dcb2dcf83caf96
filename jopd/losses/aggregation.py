"""From [B, T] losses to one number, with a denominator that is an input.

A reduction is linear in `per_token`. Its count is that of the whole batch,
known before the forward pass, so that micro-batches, devices and hosts add up
exactly. A count of 0 (nothing to learn from) gives 0, not 0 / 0.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
from jaxtyping import ScalarLike as Scalar


def counts(what: str) -> Callable:
  """Declares the denominator of an aggregation, 'tokens' or 'rows'.

  Undeclared ones are given the number of tokens.

  Gradients: none.
  """

  def declare(function):
    function.counts = what
    return function

  return declare


def token_mean(
  per_token: Float[Array, 'B T'], mask: Bool[Array, 'B T'], count: Scalar
) -> Float[Array, '']:
  """Every token counts the same: sum of the masked tokens / count.

  Args:
    per_token: [B, T] losses. Whatever stands where the mask is False, NaN too,
      changes nothing.
    mask: [B, T], True counts.
    count: the number of tokens in the whole batch.

  Returns:
    A scalar.

  Gradients: to per_token, 1 / count where the mask is True.

  Example:
    >>> loss = jnp.array([[1.0, 2.0, jnp.nan], [3.0, jnp.nan, jnp.nan]])
    >>> float(token_mean(loss, jnp.isfinite(loss), 3))
    2.0
  """
  return _divide(jnp.sum(jnp.where(mask, per_token, 0.0)), count)


@counts('rows')
def sequence_mean(
  per_token: Float[Array, 'B T'], mask: Bool[Array, 'B T'], count: Scalar
) -> Float[Array, '']:
  """Every row counts the same: sum of the rows' own means / count.

  Tokens of short responses weigh more than those of long ones.

  Args:
    per_token: [B, T] losses. Whatever stands where the mask is False, NaN too,
      changes nothing.
    mask: [B, T], True counts. A row without a True adds 0.
    count: the number of rows in the whole batch.

  Returns:
    A scalar.

  Gradients: to per_token, 1 / (tokens of the row * count) where the mask is
    True.

  Example: the rows' means are 1.5 and 3.
    >>> loss = jnp.array([[1.0, 2.0, jnp.nan], [3.0, jnp.nan, jnp.nan]])
    >>> float(sequence_mean(loss, jnp.isfinite(loss), 2))
    2.25
  """
  row_sum = jnp.sum(jnp.where(mask, per_token, 0.0), axis=1)
  return _divide(jnp.sum(_divide(row_sum, jnp.sum(mask, axis=1))), count)


@counts('rows')
def fixed_length(
  per_token: Float[Array, 'B T'],
  mask: Bool[Array, 'B T'],
  count: Scalar,
  *,
  length: Scalar,
) -> Float[Array, '']:
  """Every row over one length: sum of the masked tokens / (length * count).

  Every token counts the same, whatever the batch it comes in, so a long row
  weighs more than a short one. Its twins divide by what is there instead:
  `token_mean` by the batch's tokens, `sequence_mean` by the row's.

  Args:
    per_token: [B, T] losses. Whatever stands where the mask is False, NaN too,
      changes nothing.
    mask: [B, T], True counts.
    count: the number of rows in the whole batch.
    length: > 0, a constant such as the most tokens that a response may have.

  Returns:
    A scalar.

  Gradients: to per_token, 1 / (length * count) where the mask is True.
  Raises: ValueError when length is not above 0.
  References: Liu et al., Understanding R1-Zero-Like Training, arXiv 2503.20783.

  Example: the rows' sums are 3 and 3, over a length of 4.
    >>> loss = jnp.array([[1.0, 2.0, jnp.nan], [3.0, jnp.nan, jnp.nan]])
    >>> float(fixed_length(loss, jnp.isfinite(loss), 2, length=4))
    0.75
  """
  if not length > 0:
    raise ValueError(f'length must be above 0, got {length!r}')
  return token_mean(per_token, mask, count) / length


def _divide(total, count):
  """Total / count, and 0 / 0 = 0."""
  count = jnp.asarray(count)
  return total / jnp.where(count == 0, 1, count)
