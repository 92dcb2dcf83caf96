"""Supports: which categories are compared, and what becomes of the others.

A support maps two [*B, V] arrays of log-probs to two [*B, K'] arrays.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jopd.losses.distributions import LOG_ZERO, finite, top_indices

Pair = tuple[Float[Array, '*B K'], Float[Array, '*B K']]


def full(
  student_logp: Float[Array, '*B V'], target_logp: Float[Array, '*B V']
) -> tuple[Float[Array, '*B V'], Float[Array, '*B V']]:
  """The whole vocabulary: both arguments as they came.

  Args:
    student_logp: [*B, V] log-probs of the student.
    target_logp: [*B, V] log-probs of the target.

  Returns:
    The same two arrays.

  Gradients: identity.
  """
  return student_logp, target_logp


def top_k(
  student_logp: Float[Array, '*B V'],
  target_logp: Float[Array, '*B V'],
  *,
  k: int,
  of: str = 'target',
  tail: str = 'bucket',
) -> Pair:
  """The k likeliest tokens of one side or both, and what becomes of the rest.

  For a target of which only the top K are known, or to reproduce a paper;
  `full` is exact and costs no more. `of` decides the support:

    'student', 'target': its k likeliest.
    'union': of the two, in 2k slots: the student's k, then the target's. The
      second slot of a token that both chose is empty, so it counts once.
    'intersection': of the two, in the student's k slots; those of tokens that
      the target did not choose are empty.

  `tail` decides what the loss reads of the rest:

    'drop': the log-probs as they are, summing to less than one. Not a
      divergence: use one with a repair, such as `generalized_reverse_kl`.
    'renormalize': log-softmax inside the support, on both sides. Blind to the
      mass outside, which is never trained down; a support of one token is
      identically zero.
    'bucket': one category more, the last, holding all other mass: a true
      distribution, whose KL is a lower bound of the full one.

  Args:
    student_logp: [*B, V] log-probs of the student, float32. Gradient flows.
    target_logp: [*B, V] log-probs of the target.
    k: static int, 1 <= k <= V. Changing it recompiles.
    of: 'student', 'target', 'union' or 'intersection', see above.
    tail: see above.

  Returns:
    Two [*B, K] arrays of log-probs, nats; K is k, or 2k for a union, and one
    more with 'bucket'.

  Gradients: to both sides through the kept log-probs; the choice of indices is
    constant.
  Numerics: the bucket is a logsumexp over the tokens left out, never
    log(1 - mass), so it is exact and finite also when the mass rounds to 1.
    Empty slots and an empty bucket (k = V) are LOG_ZERO on both sides and add
    0, so an empty intersection has no loss and no gradient. -inf comes out as
    LOG_ZERO; a side without mass on the support is renormalised to uniform.
  Raises: ValueError when k, of or tail is none of the above.
  References: Zhu et al., arXiv 2605.11182, eq. 6 ('drop'), 14 ('renormalize'),
    17 ('intersection') and appendix A.3 ('bucket').

  Example:
    >>> p = jnp.log(jnp.array([0.1, 0.2, 0.7]))
    >>> q = jnp.log(jnp.array([0.6, 0.3, 0.1]))
    >>> student, target = top_k(p, q, k=1)
    >>> [round(float(x), 4) for x in jnp.exp(student)]
    [0.1, 0.9]
    >>> [round(float(x), 4) for x in jnp.exp(target)]
    [0.6, 0.4]
  """
  vocab = student_logp.shape[-1]
  if not 1 <= k <= vocab:
    raise ValueError(f'k must be in [1, {vocab}], the vocabulary; got {k}')
  if of not in ('student', 'target', 'union', 'intersection'):
    raise ValueError(
      f"of must be 'student', 'target', 'union' or 'intersection', got {of!r}"
    )
  if tail not in ('drop', 'renormalize', 'bucket'):
    raise ValueError(
      f"tail must be 'drop', 'renormalize' or 'bucket', got {tail!r}"
    )
  index = _chosen(student_logp, target_logp, k, of)
  if tail == 'drop':
    return _kept(student_logp, index), _kept(target_logp, index)
  if tail == 'renormalize':
    return _renormalized(student_logp, index), _renormalized(target_logp, index)
  inside = jnp.put_along_axis(
    jnp.zeros(student_logp.shape, bool),
    index,
    True,
    axis=-1,
    inplace=False,
    mode='drop',
  )
  return (
    _with_bucket(student_logp, index, inside),
    _with_bucket(target_logp, index, inside),
  )


def _chosen(student_logp, target_logp, k, of):
  """The ids of the support by slot; an empty slot has the id V, no token's."""
  if of == 'student':
    return top_indices(student_logp, k)
  if of == 'target':
    return top_indices(target_logp, k)
  vocab = student_logp.shape[-1]
  student_top = top_indices(student_logp, k)
  target_top = top_indices(target_logp, k)
  same = student_top[..., :, None] == target_top[..., None, :]
  if of == 'intersection':
    return jnp.where(same.any(axis=-1), student_top, vocab)
  only_target = jnp.where(same.any(axis=-2), vocab, target_top)
  return jnp.concatenate([student_top, only_target], axis=-1)


def _kept(logp, index):
  """The log-probs of the slots."""
  return finite(
    jnp.take_along_axis(logp, index, axis=-1, mode='fill', fill_value=LOG_ZERO)
  )


def _renormalized(logp, index):
  """The log-probs of the slots, as if there were no other tokens."""
  filled = index < logp.shape[-1]
  # An empty slot lies below a token without mass: where all tokens of the
  # support are without, they share the one, and empty slots get none of it.
  kept = jnp.where(filled, _kept(logp, index), 2 * LOG_ZERO)
  return jnp.where(filled, jax.nn.log_softmax(kept), LOG_ZERO)


def _with_bucket(logp, index, inside):
  """The log-probs of the slots, then the log of the mass in none of them."""
  outside = jnp.where(inside, LOG_ZERO, finite(logp))
  bucket = jax.nn.logsumexp(outside, axis=-1, keepdims=True)
  return jnp.concatenate([_kept(logp, index), bucket], axis=-1)
