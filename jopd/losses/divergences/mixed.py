"""Divergences to a mixture of the sides, bounded whatever either excludes."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from jopd.losses.divergences.kl import forward_kl, reverse_kl, sides


def _mixture(first_logp, second_logp, share):
  """log(share first + (1 - share) second), 0 < share < 1."""
  return jnp.logaddexp(
    math.log(share) + first_logp, math.log1p(-share) + second_logp
  )


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
  student_logp, target_logp = sides(student_logp, target_logp)
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
  student_logp, target_logp = sides(student_logp, target_logp)
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
  student_logp, target_logp = sides(student_logp, target_logp)
  mixture_logp = _mixture(student_logp, target_logp, alpha)
  return jnp.sum(jnp.exp(student_logp) * (student_logp - mixture_logp), axis=-1)


def _check_skew(alpha):
  if not 0 <= alpha < 1:
    raise ValueError(
      f'alpha must be in [0, 1), got {alpha}: 0 is the plain KL, at 1 a side is'
      ' compared with itself'
    )
