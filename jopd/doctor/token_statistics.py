"""Statistics of models on the student's responses, chunk by chunk.

Hidden states go in and [B, T] numbers come out; logits exist for one chunk of
tokens at a time.
"""

from collections.abc import Mapping
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import optax

from jopd import losses
from jopd.losses.distributions import top_indices
from jopd.losses.kernel import Shared, Tokens, collect_chunks


class Readings(NamedTuple):
  """Statistics of each token of the student's responses; [B, T] float32.

  Meaningless where the mask is False.

  Attributes:
    student_logp: log-prob of the token, nats, at temperature 1.
    target_logp: the same under the teacher.
    student_entropy: nats.
    target_entropy: nats.
    reverse_kl: KL(student || teacher), nats, over the whole vocabulary.
    overlap: fraction of the student's k most likely ids among the teacher's.
    agreement: 1 where both have the same most likely id.
    overlap_mass: the student's probability of ids in both sets.
    student_mass: the student's probability of its own k most likely ids.
    target_mass: the teacher's probability of its own.
    padding: the student's probability of ids beyond the tokenizer.
  """

  student_logp: Float[Array, 'B T']
  target_logp: Float[Array, 'B T']
  student_entropy: Float[Array, 'B T']
  target_entropy: Float[Array, 'B T']
  reverse_kl: Float[Array, 'B T']
  overlap: Float[Array, 'B T']
  agreement: Float[Array, 'B T']
  overlap_mass: Float[Array, 'B T']
  student_mass: Float[Array, 'B T']
  target_mass: Float[Array, 'B T']
  padding: Float[Array, 'B T']


def read(
  student: tuple[Array, Array],
  teacher: tuple[Array, Array],
  token: Int[Array, 'B T'],
  mask: Bool[Array, 'B T'],
  *,
  vocab_size: int,
  k: int,
  chunk_tokens: int = 256,
) -> Readings:
  """Compares a student and a teacher on the student's responses.

  Args:
    student: hidden states [B, T, D] and head [V, D].
    teacher: the same of the teacher, with its own V and D.
    token: [B, T] the student's responses.
    mask: [B, T], True counts.
    vocab_size: ids from here on are padding of the heads.
    k: size of the sets that are compared, at most vocab_size.
    chunk_tokens: about how many tokens have logits at a time.
  References: Li et al., Rethinking On-Policy Distillation, arXiv 2604.13016,
    section 4.1 (k = 16).
  """

  def collect(logits, tokens, shared):
    del shared
    p = losses.log_probs(logits.student[:, :vocab_size])
    q = losses.log_probs(logits.teachers['0'][:, :vocab_size])
    p_top, q_top = top_indices(p, k), top_indices(q, k)
    in_both = (p_top[:, :, None] == q_top[:, None, :]).any(-1)
    on = lambda logp, ids: jnp.exp(jnp.take_along_axis(logp, ids, axis=-1))
    student_top = on(p, p_top)
    raw = jnp.exp(losses.log_probs(logits.student))
    return Readings(
      student_logp=losses.token_logp(p, tokens.token),
      target_logp=losses.token_logp(q, tokens.token),
      student_entropy=losses.entropy(p),
      target_entropy=losses.entropy(q),
      reverse_kl=losses.reverse_kl(p, q),
      overlap=jnp.mean(in_both, axis=-1, dtype=jnp.float32),
      agreement=(p_top[:, 0] == q_top[:, 0]).astype(jnp.float32),
      overlap_mass=jnp.sum(student_top * in_both, axis=-1),
      student_mass=jnp.sum(student_top, axis=-1),
      target_mass=jnp.sum(on(q, q_top), axis=-1),
      padding=jnp.sum(raw[:, vocab_size:], axis=-1),
    )

  return _collect(collect, student, [teacher], token, mask, chunk_tokens)


def privilege(
  student: tuple[Array, Array],
  teachers: Float[Array, 'J B T D'],
  head: Float[Array, 'V D'],
  mask: Bool[Array, 'B T'],
  *,
  vocab_size: int,
  chunk_tokens: int = 256,
) -> tuple[Float[Array, 'B T'], Float[Array, 'B T']]:
  """The part of the loss that depends on the privilege of an example.

  A teacher reads a context with a privilege I_j that the student lacks:
  q_j = q(. | I_j, x, y_<t), for J privileges that replace the example's own.
  The one distribution r of the student has to serve all of them. Then

    mean_j KL(q_j || r) = information + KL(m || r),  m = mean_j q_j,
    information = mean_j KL(q_j || m),

  so m is the best student without the privilege, and the information, the
  generalised Jensen-Shannon divergence of the q_j, is what no training removes.
  It is also the mutual information between the next token and the index j: 0 if
  swapping privileges changes nothing (a rule shared by all examples), at most
  log J. For J privileges drawn from many it is, on average, a lower bound.

  Args:
    student: hidden states [B, T, D'] and head [V', D'], without privilege.
    teachers: hidden states of the same responses with each privilege.
    head: of the teacher.
    mask: [B, T], True counts.
    vocab_size: ids from here on are padding of the heads.
    chunk_tokens: about how many tokens have logits at a time, over all J.

  Returns:
    information and mean_j KL(q_j || student), nats at each token. The ratio of
    their sums over tokens is the part of a forward KL that cannot be learned.

  References: the decomposition is Topsoe's compensation identity. Zhu et al.,
    The Many Faces of On-Policy Distillation, arXiv 2605.11182: shared
    privileges work, instance-specific ones do not.
  """
  count = len(teachers)

  def collect(logits, tokens, shared):
    del tokens, shared
    p = losses.log_probs(logits.student[:, :vocab_size])
    qs = [losses.log_probs(x[:, :vocab_size]) for x in logits.teachers.values()]
    mixture = functools.reduce(jnp.logaddexp, qs) - jnp.log(count)
    mean_kl = lambda r: sum(losses.forward_kl(r, q) for q in qs) / count
    return mean_kl(mixture), mean_kl(p)

  token = jnp.zeros(mask.shape, jnp.int32)  # not read
  each = [(hidden, head) for hidden in teachers]
  return _collect(
    collect, student, each, token, mask, max(1, chunk_tokens // count)
  )


def _collect(collect, student, teachers, token, mask, chunk_tokens):
  """`collect` of each token; see losses/kernel.py."""
  zeros = jnp.zeros(mask.shape)
  named = {str(i): pair for i, pair in enumerate(teachers)}
  tokens = Tokens(
    teachers={name: hidden for name, (hidden, _) in named.items()},
    token=token,
    sampler_logp=zeros,
    rollout_logp=None,
    row=None,
    mask=mask,
    weights={},
    factors=None,
  )
  heads = {name: head for name, (_, head) in named.items()}
  shared = Shared(heads=heads, coefs={}, temperature=1.0)
  size = min(mask.shape[1], max(1, chunk_tokens // mask.shape[0]))
  return collect_chunks(collect, size, *student, tokens, shared)


class TermGradient(NamedTuple):
  """The gradient of a term of the loss, to hidden states and head.

  Attributes:
    value_at_equality: the term if the student equals all of its teachers, nats
      per token.
    norm_at_equality: the norm of its gradient there.
    norm: of its gradient with the teachers as they are.
  """

  value_at_equality: Float[Array, '']
  norm_at_equality: Float[Array, '']
  norm: Float[Array, '']


def term_gradients(
  student: tuple[Array, Array],
  teachers: Mapping[str, tuple[Array, Array]],
  token: Int[Array, 'B T'],
  sampler_logp: Float[Array, 'B T'],
  mask: Bool[Array, 'B T'],
  *,
  terms: Mapping[str, losses.Term],
  aggregation,
  row: losses.Row | None = None,
  **options,
) -> dict[str, TermGradient]:
  """The gradient of each term, with its teachers and with the student as them.

  A divergence has no gradient where the two sides are equal. This checks the
  whole path on real hidden states: vocabulary, chunks, weights, masks.
  `losses.gradient_check` enumerates the formula on a small vocabulary.

  Args:
    student: hidden states [B, T, D] and head [V, D].
    teachers: the same of each role.
    token: [B, T] the responses.
    sampler_logp: [B, T] their log-probs when they were sampled.
    mask: [B, T], True counts.
    terms: of the stage; their coefficients are not used.
    aggregation: of the stage, a `train.stage.Aggregation`.
    row: [B], of each response. Rewards are zero at equality.
    options: of `losses.distill_loss_chunked`.
  """
  rewards = ('reward', 'group_mean', 'group_std')
  no_rewards = row and row._replace(
    **{n: jax.tree.map(jnp.zeros_like, getattr(row, n)) for n in rewards}
  )
  equal_teachers = dict.fromkeys(teachers, student)

  def loss(student, teachers, name, row):
    return losses.distill_loss_chunked(
      *student,
      teachers,
      token,
      sampler_logp,
      # All responses here are the student's.
      {name: terms[name]._replace(coef=1.0, rows=None)},
      mask=mask,
      reduce=aggregation.reduce,
      count=aggregation.count(mask),
      with_stats=False,
      row=row,
      **options,
    )[0]

  def norm(gradients):
    in_float32 = jax.tree.map(lambda x: x.astype(jnp.float32), gradients)
    return optax.tree.norm(in_float32)

  def measure(name):
    value, at_equality = jax.value_and_grad(loss)(
      student, equal_teachers, name, no_rewards
    )
    gradient = jax.grad(loss)(student, teachers, name, row)
    return TermGradient(value, norm(at_equality), norm(gradient))

  return {name: measure(name) for name in terms}
