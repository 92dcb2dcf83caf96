"""Divergences between two distributions over the same K categories.

Each takes (student_logp, target_logp), both [*B, K], and returns [*B] in nats.
The target is a constant. p is the student, q the target. Log-probs need not sum
to one: on a truncated support the sums simply run over the K that are there.

-inf counts as LOG_ZERO on either side: a category without mass adds exactly 0,
and a divergence that is infinite on paper (mass where the other side has none)
is about 1e9 times that mass, with a finite gradient.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jopd.losses.distributions import finite


def _sides(student_logp, target_logp):
  """Both sides made finite, the target made constant."""
  return finite(student_logp), finite(jax.lax.stop_gradient(target_logp))


def reverse_kl(
  student_logp: Float[Array, '*B K'], target_logp: Float[Array, '*B K']
) -> Float[Array, '*B']:
  """Reverse KL, KL(student || target) = sum_v p_v log(p_v / q_v).

  The default of on-policy distillation: mode seeking, charged where the student
  puts mass. Meant for categories that sum to one (`full`, `top_k` with tail
  'bucket' or 'renormalize'). On a truncated sum (tail 'drop') it is the biased
  loss of the paper, minimised at p = q / e by fleeing the support; its repair
  is `stop_gradient_reverse_kl`.

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
  is minimised at p = q / sum(q): never clamp it, use a bucket.

  Args:
    student_logp: [*B, K] log-probs of the student, float32. Gradient flows.
    target_logp: [*B, K] log-probs of the target. Constant.

  Returns:
    [*B] divergences, nats; >= 0 when both sides sum to one.

  Gradients: -sum_v q_v grad log p_v; to the logits of a full softmax, p - q,
    also at tokens that the student all but excludes.

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
    descends (that is sum p log(p / q) - p + q, which is >= 0).

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
  mixture_logp = jnp.logaddexp(
    math.log(beta) + target_logp, math.log1p(-beta) + student_logp
  )
  target_side = jnp.exp(target_logp) * (target_logp - mixture_logp)
  student_side = jnp.exp(student_logp) * (student_logp - mixture_logp)
  return jnp.sum(beta * target_side + (1 - beta) * student_side, axis=-1)
