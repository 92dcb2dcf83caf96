"""Scalars known of each token, for weights, credits and metrics to read."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jopd.losses.distributions import entropy, finite, pick, top_indices
from jopd.losses.divergences import reverse_kl

TOP = 16  # As in Rethinking On-Policy Distillation, arXiv 2604.13016.


class TokenStats(NamedTuple):
  """Per-token scalars, [*B] float32, all under stop-gradient.

  The five that compare with a target are None when there is none, and are then
  left out of the metrics.

  Attributes:
    student_logp: log-prob of the token under the student, nats.
    target_logp: the same under the target.
    sampler_logp: the same under the distribution that sampled it.
    student_entropy: entropy of the student, nats.
    target_entropy: entropy of the target, nats.
    reverse_kl: KL(student || target), exact, over the whole vocabulary.
    overlap: share of the student's top 16 that is in the target's top 16.
    target_mass: the student's probability on the target's top 16. When it falls
      while the loss falls, the student is fleeing the support.
  """

  student_logp: Float[Array, '*B']
  target_logp: Float[Array, '*B'] | None
  sampler_logp: Float[Array, '*B']
  student_entropy: Float[Array, '*B']
  target_entropy: Float[Array, '*B'] | None
  reverse_kl: Float[Array, '*B'] | None
  overlap: Float[Array, '*B'] | None
  target_mass: Float[Array, '*B'] | None


def token_stats(
  student_logp: Float[Array, '*B V'],
  target_logp: Float[Array, '*B V'] | None,
  token: Int[Array, '*B'],
  sampler_logp: Float[Array, '*B'],
) -> TokenStats:
  """The stats of each token.

  Under `jit`, those that nobody reads are not computed.

  Args:
    student_logp: [*B, V] log-probs of the student.
    target_logp: [*B, V] log-probs of the target, or None.
    token: [*B] the sampled ids.
    sampler_logp: [*B] their log-probs when they were sampled.

  Returns:
    TokenStats.

  Gradients: none.

  Example: of three tokens all are in the top 16.
    >>> p = jnp.log(jnp.array([0.2, 0.3, 0.5]))
    >>> stats = token_stats(p, p, jnp.array(2), jnp.array(-1.0))
    >>> float(stats.reverse_kl), float(stats.overlap)
    (0.0, 1.0)
  """
  student_logp = finite(jax.lax.stop_gradient(student_logp))
  stats = TokenStats(
    student_logp=pick(student_logp, token),
    target_logp=None,
    sampler_logp=finite(jax.lax.stop_gradient(sampler_logp)),
    student_entropy=entropy(student_logp),
    target_entropy=None,
    reverse_kl=None,
    overlap=None,
    target_mass=None,
  )
  if target_logp is None:
    return stats
  target_logp = finite(jax.lax.stop_gradient(target_logp))
  k = min(TOP, target_logp.shape[-1])
  student_top = top_indices(student_logp, k)
  target_top = top_indices(target_logp, k)
  shared = (student_top[..., :, None] == target_top[..., None, :]).any(-1)
  on_target = jnp.take_along_axis(student_logp, target_top, axis=-1)
  return stats._replace(
    target_logp=pick(target_logp, token),
    target_entropy=entropy(target_logp),
    reverse_kl=reverse_kl(student_logp, target_logp),
    overlap=jnp.mean(shared, axis=-1, dtype=jnp.float32),
    target_mass=jnp.sum(jnp.exp(on_target), axis=-1),
  )
