"""On which of the V categories the two sides are compared, and the tail's fate.

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
  """The k likeliest tokens of one side, and what becomes of the others.

  For when the target's full distribution is not at hand, or to reproduce a
  paper; otherwise `full` costs little more. The tail decides what the loss can
  see:

    'drop': the k log-probs as they are, summing to less than one. Not a
      divergence: use `stop_gradient_reverse_kl` or `generalized_jsd` on it.
    'renormalize': log-softmax inside the k, on both sides. Blind to the mass
      outside, which is never trained down; k = 1 is identically zero.
    'bucket': k + 1 categories, the last holding all other mass: a true
      distribution, whose KL is a lower bound of the full one.

  Args:
    student_logp: [*B, V] log-probs of the student, float32. Gradient flows.
    target_logp: [*B, V] log-probs of the target.
    k: static int, 1 <= k <= V. Changing it recompiles.
    of: whose likeliest tokens, 'target' or 'student'.
    tail: see above.

  Returns:
    Two [*B, k] arrays of log-probs, nats; [*B, k + 1] with 'bucket'.

  Gradients: to both sides through the kept log-probs; the choice of indices is
    constant.
  Numerics: the bucket is a logsumexp over the tokens left out, never
    log(1 - mass), so it is exact and finite also when the mass rounds to 1. An
    empty bucket (k = V) is LOG_ZERO on both sides and adds 0.
  Raises: ValueError when k, of or tail is none of the above.
  References: Zhu et al., arXiv 2605.11182, eq. 6 ('drop'), 14 ('renormalize')
    and appendix A.3 ('bucket').

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
  if of not in ('target', 'student'):
    raise ValueError(f"of must be 'target' or 'student', got {of!r}")
  if tail not in ('drop', 'renormalize', 'bucket'):
    raise ValueError(
      f"tail must be 'drop', 'renormalize' or 'bucket', got {tail!r}"
    )
  index = top_indices(target_logp if of == 'target' else student_logp, k)
  student_kept = jnp.take_along_axis(student_logp, index, axis=-1)
  target_kept = jnp.take_along_axis(target_logp, index, axis=-1)
  if tail == 'drop':
    return student_kept, target_kept
  if tail == 'renormalize':
    return (
      jax.nn.log_softmax(finite(student_kept)),
      jax.nn.log_softmax(finite(target_kept)),
    )
  kept = jnp.put_along_axis(
    jnp.zeros(student_logp.shape, bool), index, True, axis=-1, inplace=False
  )
  return (
    _with_bucket(student_kept, student_logp, kept),
    _with_bucket(target_kept, target_logp, kept),
  )


def _with_bucket(kept_logp, logp, kept):
  """The kept log-probs, then the log of the mass outside them."""
  outside = jnp.where(kept, LOG_ZERO, finite(logp))
  bucket = jax.nn.logsumexp(outside, axis=-1, keepdims=True)
  return jnp.concatenate([kept_logp, bucket], axis=-1)
