"""What is sampled where two models write a response, token by token.

A function of the log-probs of both for the next token, the student's first;
it returns those of the distribution that the token is drawn from. Nobody has a
gradient here.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from jaxtyping import ScalarLike as Scalar

from jopd.losses.validation import check_range


def mixed(
  student: Float[Array, '*B V'], teacher: Float[Array, '*B V'], *, share: Scalar
) -> Float[Array, '*B V']:
  """The mixture a T + (1 - a) S: a coin decides whose token it is.

  The student's own prefixes stay likely, and those that nobody but a student
  of little skill would write become rare. A token is at most 1 / (1 - a) times
  as likely under the student as under the mixture, so importance weights are
  bounded.

  Args:
    student: [*B, V] log-probs.
    teacher: [*B, V] log-probs.
    share: a in [0, 1], the teacher's, may be traced. 0 is the student, 1 the
      teacher.

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
  """The student proposes; the teacher replaces what it would hardly say.

  A proposed token that is not among the teacher's k likeliest is replaced by
  one drawn from the whole distribution of the teacher. So the token that comes
  of it is distributed as S on those k, plus T times all that S has elsewhere:
  one draw from that is the proposal and its replacement, exactly.

  Early in training much is replaced, later little. A student that equals the
  teacher is still sharpened, unless k is V.

  Args:
    student: [*B, V] log-probs.
    teacher: [*B, V] log-probs.
    k: from 1 to V. V is the student. Tokens that tie with the last one count.

  Returns:
    [*B, V] log-probs, nats.

  Raises: ValueError when k is less than 1 or more than V.
  References: Xu et al., Speculative KD, arXiv 2410.11325; the abstract and
    reading notes are known to us. That a replacement may lie outside the k is
    how we read them; ports also take the teacher's likeliest.

  Example: the teacher has one likeliest token, for which the student is sure
  to 0.2; the 0.8 elsewhere are dealt out by the teacher.
    >>> p, q = jnp.log(jnp.array([0.2, 0.8])), jnp.log(jnp.array([0.75, 0.25]))
    >>> [round(x, 4) for x in jnp.exp(speculative(p, q, k=1)).tolist()]
    [0.8, 0.2]
  """
  vocab = student.shape[-1]
  if not 1 <= k <= vocab:
    raise ValueError(f'k must be from 1 to the {vocab} tokens, got {k}')
  least = jax.lax.top_k(teacher, k)[0][..., -1:]
  told = teacher >= least
  kept = jnp.where(told, student, -jnp.inf)
  other = jnp.where(told, -jnp.inf, student)
  rest = jax.nn.logsumexp(other, axis=-1, keepdims=True)
  return jnp.logaddexp(kept, rest + teacher)
