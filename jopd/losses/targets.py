"""Which distribution the student is pulled to.

A target maps log-probs by name to one [*B, V] array. The names are those of the
teachers and 'student', the student itself as a constant.
"""

from collections.abc import Mapping
import functools
import math
import numbers

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jopd.losses.distributions import LOG_ZERO, finite


def teacher(
  logps: dict[str, Float[Array, '*B V']], *, role: str = 'teacher'
) -> Float[Array, '*B V']:
  """One teacher, as it is.

  Args:
    logps: [*B, V] log-probs of each side, by name.
    role: which one.

  Returns:
    [*B, V] log-probs of that teacher.

  Gradients: identity; objectives stop them before the divergence.
  Raises: ValueError when there is no such teacher.

  Example:
    >>> float(teacher({'teacher': jnp.array([-0.5])})[0])
    -0.5
  """
  if role not in logps:
    raise ValueError(
      f'expected a teacher named {role!r}, got {sorted(logps)}: give one of'
      ' these names to the target (and to stats_target)'
    )
  return logps[role]


def mixture(
  logps: dict[str, Float[Array, '*B V']], *, weights: Mapping
) -> Float[Array, '*B V']:
  """The mean of distributions, log sum_i w_i q_i.

  Likely where any of them is: several teachers, each right in its own place, or
  a teacher mixed with the student. Its twin `log_linear` is likely only where
  all of them are.

  Args:
    logps: [*B, V] log-probs of each side, by name.
    weights: name -> weight; static, >= 0, with sum 1.

  Returns:
    [*B, V] log-probs.

  Gradients: to every side; objectives stop them before the divergence.
  Numerics: in log space, exact where all of them underflow; LOG_ZERO where none
    has mass.
  Raises: ValueError when a name is unknown, or the weights are no mean.

  Example: (0.75 * 0.25 + 0.25 * 0.5, ...).
    >>> logps = {
    ...   'a': jnp.log(jnp.array([0.25, 0.75])),
    ...   'b': jnp.log(jnp.array([0.5, 0.5])),
    ... }
    >>> mean = jnp.exp(mixture(logps, weights={'a': 0.75, 'b': 0.25}))
    >>> [round(float(q), 4) for q in mean]
    [0.3125, 0.6875]
  """
  named = _named(logps, weights)
  total = math.fsum(weights.values())
  if min(weights.values()) < 0 or not math.isclose(total, 1, abs_tol=1e-6):
    raise ValueError(
      'the weights of a mixture must be >= 0 and sum to 1, got'
      f' {dict(weights)}, which sum to {total:g}'
    )
  return functools.reduce(
    jnp.logaddexp,
    [math.log(w) + finite(named[role]) for role, w in weights.items() if w > 0],
  )


def log_linear(
  logps: dict[str, Float[Array, '*B V']], *, weights: Mapping
) -> Float[Array, '*B V']:
  """The normalised product of powers, log softmax(sum_i w_i log q_i).

  With weights in [0, 1] that sum to 1 an interpolation: a geometric mean,
  likely only where all sides are, and where a student comes to that reverse KL
  pulls to each of them. With weights beyond, an extrapolation: {'teacher':
  1.25, 'reference': -0.25} goes on in the direction from the reference to the
  teacher, and a token that the reference all but excludes may come to dominate.
  The sum of the weights is an inverse temperature.

  Args:
    logps: [*B, V] log-probs of each side, by name.
    weights: name -> weight; static, finite, of either sign.

  Returns:
    [*B, V] log-probs.

  Gradients: to every side; objectives stop them before the divergence.
  Numerics: a token to which any named side gives -inf is excluded, whatever the
    weight; a place where every token is excluded is uniform.
  Raises: ValueError when a name is unknown, or a weight is no finite
    number.
  References: ExOPD / G-OPD, arXiv 2602.12125: weights lambda of the teacher and
    1 - lambda of the reference are the optimum of its reward.

  Example: 0.5^2 / 0.25 to 0.5^2 / 0.75, that is 3 to 1.
    >>> logps = {
    ...   'teacher': jnp.log(jnp.array([0.5, 0.5])),
    ...   'reference': jnp.log(jnp.array([0.25, 0.75])),
    ... }
    >>> beyond = log_linear(logps, weights={'teacher': 2, 'reference': -1})
    >>> [round(float(q), 4) for q in jnp.exp(beyond)]
    [0.75, 0.25]
  """
  named = _named(logps, weights)
  score = sum(w * finite(named[role]) for role, w in weights.items())
  excluded = functools.reduce(
    jnp.logical_or, [logp <= LOG_ZERO for logp in named.values()]
  )
  return jax.nn.log_softmax(jnp.where(excluded, LOG_ZERO, score))


def _named(logps, weights):
  """The sides that the weights name; ValueError when weights are wrong."""
  if not weights:
    raise ValueError(f'expected weights for some of {sorted(logps)}, got none')
  for role, weight in weights.items():
    if not (isinstance(weight, numbers.Real) and math.isfinite(weight)):
      raise ValueError(
        f'the weight of {role!r} must be a finite number, got {weight!r}'
      )
  return {role: teacher(logps, role=role) for role in weights}
