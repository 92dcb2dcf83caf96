"""The Kullback-Leibler divergences, and their repairs for truncated sums."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jopd.losses.distributions import finite


def sides(
  student_logp: Float[Array, '*B K'], target_logp: Float[Array, '*B K']
) -> tuple[Float[Array, '*B K'], Float[Array, '*B K']]:
  """Both sides finite; gradient to the student's, the target is a constant."""
  return finite(student_logp), finite(jax.lax.stop_gradient(target_logp))


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
  student_logp, target_logp = sides(student_logp, target_logp)
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
  student_logp, target_logp = sides(student_logp, target_logp)
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
  student_logp, target_logp = sides(student_logp, target_logp)
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
  student_logp, target_logp = sides(student_logp, target_logp)
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
  student_logp, target_logp = sides(student_logp, target_logp)
  p, q = jnp.exp(student_logp), jnp.exp(target_logp)
  return jnp.sum(q * (target_logp - student_logp) - q + p, axis=-1)
