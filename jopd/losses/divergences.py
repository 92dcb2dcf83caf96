"""Divergences between two distributions over the same K categories.

Each takes (student_logp, target_logp), both [*B, K], and returns [*B] in nats.
The target is a constant. p is the student, q the target. Log-probs need not sum
to one: on a truncated support the sums run over the K categories that are left.
Most are a sum of q f(p / q), whose gradient at p = q is f'(1) times that of the
student's mass on the K: those with f'(1) = 0 rest at p = q on any support.

-inf counts as LOG_ZERO on either side: a category without mass adds exactly 0,
and a divergence that is infinite on paper (mass where the other side has none)
is about 1e9 times that mass, with a finite gradient.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jopd.losses.distributions import finite


def reverse_kl(
  student_logp: Float[Array, '*B K'], target_logp: Float[Array, '*B K']
) -> Float[Array, '*B']:
  """Reverse KL, KL(student || target) = sum_v p_v log(p_v / q_v).

  The default of on-policy distillation: mode seeking, charged where the student
  puts mass. Meant for categories that sum to one (`full`, `top_k` with tail
  'bucket' or 'renormalize'). On a truncated sum (tail 'drop') it is the biased
  loss of the paper, minimised at p = q / e by fleeing the support; its repairs
  are `stop_gradient_reverse_kl` and `generalized_reverse_kl`.

  Args:
    student_logp: [*B, K] log-probs of the student, float32. Gradient flows.
    target_logp: [*B, K] log-probs of the target. Constant.

  Returns:
    [*B] divergences, nats; >= 0 when both sides sum to one.

  Gradients: sum_v (log(p_v / q_v) + 1) grad p_v; the +1 vanishes when the K
    probabilities sum to one, and is the bias otherwise.
  References: Zhu et al., The Many Faces of On-Policy Distillation, arXiv
    2605.11182, eq. 3 (full) and 6-9 (truncated).

  Example:
    >>> p, q = jnp.array([0.25, 0.75]), jnp.array([0.5, 0.5])
    >>> round(float(reverse_kl(jnp.log(p), jnp.log(q))), 4)
    0.1308
  """
  student_logp, target_logp = _sides(student_logp, target_logp)
  p = jnp.exp(student_logp)
  return jnp.sum(p * (student_logp - target_logp), axis=-1)


def forward_kl(
  student_logp: Float[Array, '*B K'], target_logp: Float[Array, '*B K']
) -> Float[Array, '*B']:
  """Forward KL, KL(target || student) = sum_v q_v log(q_v / p_v).

  Mode covering: charged where the target puts mass, however unlikely to the
  student. On a truncated sum it is negative when the student is the sharper and
  is minimised at p = q / sum(q): never clamp it, use a bucket, or
  `generalized_forward_kl`.

  Args:
    student_logp: [*B, K] log-probs of the student, float32. Gradient flows.
    target_logp: [*B, K] log-probs of the target. Constant.

  Returns:
    [*B] divergences, nats; >= 0 when both sides sum to one.

  Gradients: -sum_v q_v grad log p_v; to the logits of a full softmax, p - q,
    also at tokens that the student all but excludes. On a truncated sum it
    contains minus the gradient of the mass.

  Example:
    >>> p, q = jnp.array([0.25, 0.75]), jnp.array([0.5, 0.5])
    >>> round(float(forward_kl(jnp.log(p), jnp.log(q))), 4)
    0.1438
  """
  student_logp, target_logp = _sides(student_logp, target_logp)
  q = jnp.exp(target_logp)
  return jnp.sum(q * (target_logp - student_logp), axis=-1)


def stop_gradient_reverse_kl(
  student_logp: Float[Array, '*B K'], target_logp: Float[Array, '*B K']
) -> Float[Array, '*B']:
  """Reverse KL whose log-ratio is stopped: sum_v p_v sg[log(p_v / q_v)].

  The paper's repair for a truncated support: the value of `reverse_kl`, the
  gradient without its +1, so that p = q is a fixed point although the sum
  leaves categories out. On categories that sum to one it is `reverse_kl`.

  Args:
    student_logp: [*B, K] log-probs of the student, float32. Gradient flows.
    target_logp: [*B, K] log-probs of the target. Constant.

  Returns:
    [*B] values, nats. May be negative on a truncated sum; not what the gradient
    descends (that is `generalized_reverse_kl`, which is >= 0).

  Gradients: sum_v log(p_v / q_v) grad p_v.
  References: Zhu et al., The Many Faces of On-Policy Distillation, arXiv
    2605.11182, eq. 12-13.

  Example: the bias is gone, so a student equal to its target stays put.
    >>> p = jnp.log(jnp.array([0.25, 0.5]))
    >>> [float(g) for g in jax.grad(stop_gradient_reverse_kl)(p, p)]
    [0.0, 0.0]
    >>> [float(g) for g in jax.grad(reverse_kl)(p, p)]
    [0.25, 0.5]
  """
  student_logp, target_logp = _sides(student_logp, target_logp)
  log_ratio = jax.lax.stop_gradient(student_logp - target_logp)
  return jnp.sum(jnp.exp(student_logp) * log_ratio, axis=-1)


def generalized_reverse_kl(
  student_logp: Float[Array, '*B K'], target_logp: Float[Array, '*B K']
) -> Float[Array, '*B']:
  """Generalised reverse KL: sum_v p_v log(p_v / q_v) - p_v + q_v.

  The divergence of two masses rather than two distributions, also called
  I-divergence: 0 at p = q and positive elsewhere, on any support. It is what
  `stop_gradient_reverse_kl` descends, with a value that can be read; on
  categories that sum to one it is `reverse_kl`.

  Args:
    student_logp: [*B, K] log-probs of the student, float32. Gradient flows.
    target_logp: [*B, K] log-probs of the target. Constant.

  Returns:
    [*B] divergences, nats, >= 0 up to rounding.

  Gradients: sum_v log(p_v / q_v) grad p_v.
  References: Zhu et al., The Many Faces of On-Policy Distillation, arXiv
    2605.11182, eq. 12-13, for the gradient; the value follows from it.

  Example: 0.25 log(1/2) = -0.1733 on a truncated sum, and 0.25 more.
    >>> p, q = jnp.log(jnp.array([0.25])), jnp.log(jnp.array([0.5]))
    >>> round(float(reverse_kl(p, q)), 4)
    -0.1733
    >>> round(float(generalized_reverse_kl(p, q)), 4)
    0.0767
  """
  student_logp, target_logp = _sides(student_logp, target_logp)
  p, q = jnp.exp(student_logp), jnp.exp(target_logp)
  return jnp.sum(p * (student_logp - target_logp) - p + q, axis=-1)


def generalized_forward_kl(
  student_logp: Float[Array, '*B K'], target_logp: Float[Array, '*B K']
) -> Float[Array, '*B']:
  """Generalised forward KL: sum_v q_v log(q_v / p_v) - q_v + p_v.

  The repair of `forward_kl` on a truncated support, where that is negative and
  drives the student's mass to the support: this is 0 at p = q and positive
  elsewhere. On categories that sum to one it is `forward_kl`.

  Args:
    student_logp: [*B, K] log-probs of the student, float32. Gradient flows.
    target_logp: [*B, K] log-probs of the target. Constant.

  Returns:
    [*B] divergences, nats, >= 0 up to rounding.

  Gradients: sum_v (1 - q_v / p_v) grad p_v = sum_v (p_v - q_v) grad log p_v.

  Example: 0.25 log(1/2) = -0.1733 on a truncated sum, and 0.25 more.
    >>> p, q = jnp.log(jnp.array([0.5])), jnp.log(jnp.array([0.25]))
    >>> round(float(forward_kl(p, q)), 4)
    -0.1733
    >>> round(float(generalized_forward_kl(p, q)), 4)
    0.0767
  """
  student_logp, target_logp = _sides(student_logp, target_logp)
  p, q = jnp.exp(student_logp), jnp.exp(target_logp)
  return jnp.sum(q * (target_logp - student_logp) - q + p, axis=-1)


def generalized_jsd(
  student_logp: Float[Array, '*B K'],
  target_logp: Float[Array, '*B K'],
  *,
  beta: float = 0.5,
) -> Float[Array, '*B']:
  """Generalised Jensen-Shannon: beta KL(q || m) + (1 - beta) KL(p || m).

  With m = beta q + (1 - beta) p. Bounded (log 2 at beta = 0.5). By convention
  beta = 0 is `forward_kl` and beta = 1 is `reverse_kl`: the limits of the
  divergence divided by beta and by 1 - beta, since the value itself goes to 0.
  The same convention as TRL's GKD trainer (mixture beta teacher + (1 - beta)
  student); others swap beta and 1 - beta.

  Args:
    student_logp: [*B, K] log-probs of the student, float32. Gradient flows.
    target_logp: [*B, K] log-probs of the target. Constant.
    beta: static Python float in [0, 1].

  Returns:
    [*B] divergences, nats, >= 0.

  Gradients: (1 - beta) sum_v log(p_v / m_v) grad p_v: zero at p = q on any
    support, truncated ones too.
  Numerics: the mixture is taken in log space, exact where both underflow.
  Raises: ValueError when beta is outside [0, 1].
  References: Agarwal et al., On-Policy Distillation of Language Models, arXiv
    2306.13649, eq. 1.

  Example:
    >>> p, q = jnp.array([0.25, 0.75]), jnp.array([0.5, 0.5])
    >>> round(float(generalized_jsd(jnp.log(p), jnp.log(q), beta=0.1)), 4)
    0.0128
  """
  if not 0 <= beta <= 1:
    raise ValueError(f'beta must be in [0, 1], got {beta}')
  if beta == 0:
    return forward_kl(student_logp, target_logp)
  if beta == 1:
    return reverse_kl(student_logp, target_logp)
  student_logp, target_logp = _sides(student_logp, target_logp)
  mixture_logp = _mixture(target_logp, student_logp, beta)
  target_side = jnp.exp(target_logp) * (target_logp - mixture_logp)
  student_side = jnp.exp(student_logp) * (student_logp - mixture_logp)
  return jnp.sum(beta * target_side + (1 - beta) * student_side, axis=-1)


def skew_forward_kl(
  student_logp: Float[Array, '*B K'],
  target_logp: Float[Array, '*B K'],
  *,
  alpha: float = 0.1,
) -> Float[Array, '*B']:
  """Skew forward KL: KL(q || m) with m = alpha q + (1 - alpha) p.

  `forward_kl` with the target mixed into the student's side, which bounds it by
  -log(alpha), and its pull on a token by (1 - alpha) / alpha times the
  student's probability of it: a hopeless token is hardly taught.

  Args:
    student_logp: [*B, K] log-probs of the student, float32. Gradient flows.
    target_logp: [*B, K] log-probs of the target. Constant.
    alpha: static Python float in [0, 1); 0 is `forward_kl`.

  Returns:
    [*B] divergences, nats; in [0, -log(alpha)] when both sides sum to one.

  Gradients: -(1 - alpha) sum_v (q_v / m_v) grad p_v: at p = q on a truncated
    sum 1 - alpha times the bias of `forward_kl`.
  Numerics: the mixture is taken in log space, exact where both underflow.
  Raises: ValueError when alpha is outside [0, 1).
  References: Ko et al., DistiLLM, arXiv 2402.03898 (SKL).

  Example: all mass where the student has none costs -log(0.5).
    >>> p, q = jnp.array([0.0, 1.0]), jnp.array([1.0, 0.0])
    >>> skewed = skew_forward_kl(jnp.log(p), jnp.log(q), alpha=0.5)
    >>> round(float(skewed), 4)
    0.6931
  """
  _check_skew(alpha)
  if alpha == 0:
    return forward_kl(student_logp, target_logp)
  student_logp, target_logp = _sides(student_logp, target_logp)
  mixture_logp = _mixture(target_logp, student_logp, alpha)
  return jnp.sum(jnp.exp(target_logp) * (target_logp - mixture_logp), axis=-1)


def skew_reverse_kl(
  student_logp: Float[Array, '*B K'],
  target_logp: Float[Array, '*B K'],
  *,
  alpha: float = 0.1,
) -> Float[Array, '*B']:
  """Skew reverse KL: KL(p || m) with m = alpha p + (1 - alpha) q.

  `reverse_kl` with the student mixed into the target's side, which bounds it by
  -log(alpha): a token that the target excludes costs no more than that.

  Args:
    student_logp: [*B, K] log-probs of the student, float32. Gradient flows,
      also through the mixture.
    target_logp: [*B, K] log-probs of the target. Constant.
    alpha: static Python float in [0, 1); 0 is `reverse_kl`.

  Returns:
    [*B] divergences, nats; in [0, -log(alpha)] when both sides sum to one.

  Gradients: sum_v (log(p_v / m_v) + (1 - alpha) q_v / m_v) grad p_v: at p = q
    on a truncated sum 1 - alpha times the bias of `reverse_kl`.
  Numerics: the mixture is taken in log space, exact where both underflow.
  Raises: ValueError when alpha is outside [0, 1).
  References: Ko et al., DistiLLM, arXiv 2402.03898 (SRKL).

  Example: all mass where the target has none costs -log(0.1).
    >>> p, q = jnp.array([0.0, 1.0]), jnp.array([1.0, 0.0])
    >>> round(float(skew_reverse_kl(jnp.log(p), jnp.log(q))), 4)
    2.3026
  """
  _check_skew(alpha)
  if alpha == 0:
    return reverse_kl(student_logp, target_logp)
  student_logp, target_logp = _sides(student_logp, target_logp)
  mixture_logp = _mixture(student_logp, target_logp, alpha)
  return jnp.sum(jnp.exp(student_logp) * (student_logp - mixture_logp), axis=-1)


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
  student_logp, target_logp = _sides(student_logp, target_logp)
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
  student_logp, target_logp = _sides(student_logp, target_logp)
  difference = jnp.exp(student_logp) - jnp.exp(target_logp)
  # Not jnp.abs, whose slope at 0 is 1 in JAX: at p = q on a truncated support
  # that is a push out of it.
  return 0.5 * jnp.sum(jnp.sign(difference) * difference, axis=-1)


def _sides(
  student_logp: Float[Array, '*B K'], target_logp: Float[Array, '*B K']
) -> tuple[Float[Array, '*B K'], Float[Array, '*B K']]:
  """Both sides finite; gradient to the student's, the target is a constant."""
  return finite(student_logp), finite(jax.lax.stop_gradient(target_logp))


def _mixture(first_logp, second_logp, share):
  """log(share first + (1 - share) second), 0 < share < 1."""
  return jnp.logaddexp(
    math.log(share) + first_logp, math.log1p(-share) + second_logp
  )


def _check_skew(alpha):
  if not 0 <= alpha < 1:
    raise ValueError(
      f'alpha must be in [0, 1), got {alpha}: 0 is the plain KL, at 1 a side is'
      ' compared with itself'
    )
