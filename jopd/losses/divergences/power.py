"""Divergences by powers and by absolute differences of the probabilities."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jopd.losses.divergences.kl import (
  generalized_forward_kl,
  generalized_reverse_kl,
  sides,
)


def alpha_divergence(
  student_logp: Float[Array, '*B K'],
  target_logp: Float[Array, '*B K'],
  *,
  alpha: float = 0.5,
) -> Float[Array, '*B']:
  """Sum of (a p + (1 - a) q - p^a q^(1 - a)) / (a (1 - a)), with a = alpha.

  One scale from mode covering to mode seeking: alpha = 0 is
  `generalized_forward_kl`, 1 is `generalized_reverse_kl`, and 1/2 is 4 times
  the squared Hellinger distance, 4 (1 - sum sqrt(p q)) on distributions, the
  only symmetric one. The linear terms keep p = q at rest on truncated sums.

  Args:
    student_logp: [*B, K] log-probs of the student, float32. Gradient flows.
    target_logp: [*B, K] log-probs of the target. Constant.
    alpha: static Python float in [0, 1].

  Returns:
    [*B] divergences, nats, >= 0; at most 1 / (alpha (1 - alpha)) when both
    sides sum to one.

  Gradients: sum_v (1 - (q_v / p_v)^(1 - alpha)) / (1 - alpha) grad p_v.
  Numerics: the larger side is taken out of each summand, so nothing overflows,
    and summands near p = q are exact: alpha may come close to 0 and 1.
  Raises: ValueError when alpha is outside [0, 1].
  References: Minka, Divergence measures and message passing, MSR-TR-2005-173.

  Example: 4 (1 - sqrt(1/8) - sqrt(3/8)).
    >>> p, q = jnp.array([0.25, 0.75]), jnp.array([0.5, 0.5])
    >>> round(float(alpha_divergence(jnp.log(p), jnp.log(q))), 4)
    0.1363
  """
  if not 0 <= alpha <= 1:
    raise ValueError(f'alpha must be in [0, 1], got {alpha}')
  if alpha == 0:
    return generalized_forward_kl(student_logp, target_logp)
  if alpha == 1:
    return generalized_reverse_kl(student_logp, target_logp)
  student_logp, target_logp = sides(student_logp, target_logp)
  # With x >= y the two sides and w the power of y, the summand's numerator is
  # x (1 - w + w y/x - (y/x)^w), in which the leading 1 - 1 cancels by hand:
  # what rounding would leave of it is divided by alpha (1 - alpha).
  larger = jnp.exp(jnp.maximum(student_logp, target_logp))
  log_ratio = -jnp.abs(student_logp - target_logp)
  power = jnp.where(student_logp > target_logp, 1 - alpha, alpha)
  numerator = power * jnp.expm1(log_ratio) - jnp.expm1(power * log_ratio)
  return jnp.sum(larger * numerator, axis=-1) / (alpha * (1 - alpha))


def total_variation(
  student_logp: Float[Array, '*B K'], target_logp: Float[Array, '*B K']
) -> Float[Array, '*B']:
  """Total variation distance, sum_v |p_v - q_v| / 2.

  Symmetric and bounded by 1. Its pull does not grow with the log-ratio nor
  shrink with the distance: a hopeless token is hardly taught, and near the
  target fixed steps do not settle.

  Args:
    student_logp: [*B, K] log-probs of the student, float32. Gradient flows.
    target_logp: [*B, K] log-probs of the target. Constant.

  Returns:
    [*B] distances, in [0, 1] when both sides sum to one. A share, not nats.

  Gradients: sum_v sign(p_v - q_v) / 2 grad p_v; 0 at the kink p_v = q_v, which
    only equality to the last bit meets.
  References: Wen et al., f-Divergence Minimization for Sequence-Level Knowledge
    Distillation, arXiv 2307.15190.

  Example:
    >>> p, q = jnp.array([0.25, 0.75]), jnp.array([0.5, 0.5])
    >>> round(float(total_variation(jnp.log(p), jnp.log(q))), 4)
    0.25
  """
  student_logp, target_logp = sides(student_logp, target_logp)
  difference = jnp.exp(student_logp) - jnp.exp(target_logp)
  # Not jnp.abs, whose slope at 0 is 1 in JAX: at p = q on a truncated support
  # that is a push out of it.
  return 0.5 * jnp.sum(jnp.sign(difference) * difference, axis=-1)
