"""Targets: the distribution that the student is pulled to.

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
from jaxtyping import ScalarLike as Scalar

from jopd.losses.distributions import LOG_ZERO, finite
from jopd.losses.validation import check_range


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
      f'expected a teacher named {role!r}, got {sorted(logps)}: name one of'
      ' these in the target (and in stats_target)'
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
    weights: name -> weight, >= 0, with sum 1; may be traced.

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
  shares = list(weights.values())
  traced = any(isinstance(w, jax.core.Tracer) for w in shares)
  if not traced and (min(shares) < 0 or abs(math.fsum(shares) - 1) > 1e-6):
    raise ValueError(
      'the weights of a mixture must be >= 0 and sum to 1, got'
      f' {dict(weights)}, which sum to {math.fsum(shares):g}'
    )
  return functools.reduce(
    jnp.logaddexp,
    # -inf + -1e9 is -inf: a side of weight 0 adds nothing.
    [jnp.log(w) + finite(named[role]) for role, w in weights.items()],
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
    weights: name -> weight, finite, of either sign; may be traced.

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
    if isinstance(weight, jax.core.Tracer):
      continue
    if not (isinstance(weight, numbers.Real) and math.isfinite(weight)):
      raise ValueError(
        f'the weight of {role!r} must be a finite number, got {weight!r}'
      )
  return {role: teacher(logps, role=role) for role in weights}


def extrapolated(
  logps: dict[str, Float[Array, '*B V']],
  *,
  strength: Scalar,
  limit: float = math.inf,
  base: str = 'reference',
  role: str = 'teacher',
) -> Float[Array, '*B V']:
  """Beyond the teacher, base (teacher / base)^strength, normalised: ExOPD.

  The optimum of the reward strength * log(teacher / base) less a KL to base. At
  strength 1 it is the teacher, below between the two. `log_linear` with two
  weights, one of them the strength.

  Args:
    logps: [*B, V] log-probs of each side, by name.
    strength: lambda >= 0; may be traced.
    limit: the largest strength that is accepted; see
      `jopd.papers.exopd.extrapolation_cliff`.
    base: the role of the policy that is extrapolated from: the initial student,
      or the teacher before its training by rewards.
    role: that of the teacher.

  Returns:
    [*B, V] log-probs.

  Gradients: to both sides; objectives stop them before the divergence.
  Numerics: as `log_linear`.
  Raises: ValueError when strength is negative or beyond the limit, or there is
    no such role.
  References: G-OPD / ExOPD, arXiv 2602.12125: its advantage is the log-ratio to
    this target, up to the normaliser, the same for all tokens. lambda is 1.25
    there. The limit: arXiv 2605.08737.

  Example: from (1/4, 3/4) over (1/2, 1/2) on to (3/4, 1/4).
    >>> logps = {
    ...   'teacher': jnp.log(jnp.array([0.5, 0.5])),
    ...   'reference': jnp.log(jnp.array([0.25, 0.75])),
    ... }
    >>> beyond = jnp.exp(extrapolated(logps, strength=2.0))
    >>> [round(float(q), 4) for q in beyond]
    [0.75, 0.25]
  """
  check_range('[0, inf)', strength=strength)
  if not isinstance(strength, jax.core.Tracer) and strength > limit:
    raise ValueError(
      f'strength must be at most the extrapolation cliff, {limit:.4g}; got'
      f' {strength:g}: lower it, or measure the cliff'
      ' (jopd.papers.exopd.extrapolation_cliff)'
    )
  return log_linear(logps, weights={role: strength, base: 1 - strength})
