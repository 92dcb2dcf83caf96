"""Teacher-mixed sampling: each token is drawn from a mix of two models.

A mixing function takes the log-probs of the student and of the teacher for the
next token, and returns those of the distribution that is sampled from. No
gradient flows through either.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from jaxtyping import ScalarLike as Scalar

from jopd.losses.validation import check_range
from jopd.rollout.decode import Policy


def mix_policies(student: Policy, teacher: Policy, mix: Callable) -> Policy:
  """A policy that samples from a mix of two that read the same tokens.

  Its parameters, weights and cache are pairs, the student's first. The recorded
  `logp` is the student's, `sampler_logp` that of the mix.

  Args:
    student: recorded in `logp`.
    teacher: of the same vocabulary.
    mix: (student_logp [B, V], teacher_logp [B, V]) -> logp [B, V].
  """
  policies = student, teacher

  def step(weights, cache, token, position):
    (own, _, first), (other, _, second) = (
      policy.step(w, c, token, position)
      for policy, w, c in zip(policies, weights, cache, strict=True)
    )
    own, other = jax.nn.log_softmax(own), jax.nn.log_softmax(other)
    return mix(own, other), own, (first, second)

  return Policy(
    prepare=lambda params: tuple(
      policy.prepare(p) for policy, p in zip(policies, params, strict=True)
    ),
    prefill=lambda weights, prompt: tuple(
      policy.prefill(w, prompt)
      for policy, w in zip(policies, weights, strict=True)
    ),
    init_cache=lambda rows, length: tuple(
      policy.init_cache(rows, length) for policy in policies
    ),
    step=step,
  )


def mixed(
  student: Float[Array, '*B V'], teacher: Float[Array, '*B V'], *, share: Scalar
) -> Float[Array, '*B V']:
  """The mixture a T + (1 - a) S of the two distributions.

  Prefixes that only a weak student would write become rare. A token is at most
  1 / (1 - a) times as likely under the student as under the mixture, so
  importance weights are bounded.

  Args:
    student: [*B, V] log-probs.
    teacher: [*B, V] log-probs.
    share: a in [0, 1], weight of the teacher; may be traced.

  Returns:
    [*B, V] log-probs, nats.

  Raises: ValueError when share is outside [0, 1].
  References: Gu et al., MiniLLM, arXiv 2306.08543, teacher-mixed sampling, with
    a = 0.2.

  Example: half of 0.1 and half of 0.5.
    >>> p, q = jnp.log(jnp.array([0.1, 0.9])), jnp.log(jnp.array([0.5, 0.5]))
    >>> [round(x, 4) for x in jnp.exp(mixed(p, q, share=0.5)).tolist()]
    [0.3, 0.7]
  """
  check_range('[0, 1]', share=share)
  return jnp.logaddexp(jnp.log(1 - share) + student, jnp.log(share) + teacher)


def speculative(
  student: Float[Array, '*B V'], teacher: Float[Array, '*B V'], *, k: int
) -> Float[Array, '*B V']:
  """The student proposes; unlikely tokens are replaced by the teacher.

  A proposed token that is not among the teacher's k likeliest is replaced by
  one drawn from the whole distribution of the teacher. The result is
  distributed as S on those k, plus T times the mass of S elsewhere, and is
  drawn from that distribution directly.

  Early in training many tokens are replaced, later few. A student that equals
  the teacher is still sharpened, unless k is V.

  Args:
    student: [*B, V] log-probs.
    teacher: [*B, V] log-probs.
    k: from 1 to V. V is the student. Tokens that tie with the last one count.

  Returns:
    [*B, V] log-probs, nats.

  Raises: ValueError when k is less than 1 or more than V.
  References: Xu et al., Speculative KD, arXiv 2410.11325. A replacement may lie
    outside the k; some ports take the teacher's likeliest token instead.

  Example: the student gives 0.2 to the teacher's likeliest token; its other 0.8
  are distributed as the teacher's.
    >>> p, q = jnp.log(jnp.array([0.2, 0.8])), jnp.log(jnp.array([0.75, 0.25]))
    >>> [round(x, 4) for x in jnp.exp(speculative(p, q, k=1)).tolist()]
    [0.8, 0.2]
  """
  vocab = student.shape[-1]
  if not 1 <= k <= vocab:
    raise ValueError(f'k must be in [1, {vocab}], got {k}')
  accepted = teacher >= jax.lax.top_k(teacher, k)[0][..., -1:]
  proposed = jnp.where(accepted, student, -jnp.inf)
  rejected = jnp.where(accepted, -jnp.inf, student)
  rejected = jax.nn.logsumexp(rejected, axis=-1, keepdims=True)
  return jnp.logaddexp(proposed, rejected + teacher)
