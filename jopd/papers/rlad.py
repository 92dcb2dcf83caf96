"""RLAD: trust region ratio distillation, arXiv 2602.22495.

We know the paper from notes.
"""

from jaxtyping import Array, Float
from jaxtyping import ScalarLike as Scalar

from jopd.losses.token_stats import TokenStats, reads
from jopd.losses.validation import check_range


@reads('token', sampler=True)
def geometric(stats: TokenStats, *, sampler: Scalar) -> Float[Array, '*B']:
  """An old policy between the sampler and the target, O^a T^(1-a).

  The target moves the trust region, and the advantage decides the sign. With
  `ppo_clip` a good token that the target prefers to the sampler may rise
  further before it is clipped, and a token that it does not prefer less far.
  This is no importance weighting: the gradient is that of the sampler's ratio
  times (O / T)^(1-a), so tokens that the target almost excludes weigh much
  while their advantage is negative.

  Args:
    stats: TokenStats with a target.
    sampler: a in [0, 1], may be traced. 1 is `old_policies.sampler`.

  Returns:
    [*B] log-probs, nats, not normalised over the vocabulary.

  Gradients: none.
  Numerics: -inf comes as LOG_ZERO, see `finite`, so at sampler = 1 a target
    without mass adds 0 and no NaN.
  Raises: ValueError when sampler is outside [0, 1] or there is no target.
  References: arXiv 2602.22495. Its a was not found. Some ports add a term of
    the teacher to the loss instead; that is another method.

  Example: half way between 0.1 and 0.4 lies 0.2.
    >>> import jax.numpy as jnp
    >>> stats = TokenStats(sampler_logp=jnp.log(0.1), target_logp=jnp.log(0.4))
    >>> round(float(jnp.exp(geometric(stats, sampler=0.5))), 4)
    0.2
  """
  check_range('[0, 1]', sampler=sampler)
  if stats.target_logp is None:
    raise ValueError(
      "old_policy 'geometric' reads a target and the term has no teacher: give"
      " it one, or use old_policy='sampler'"
    )
  return sampler * stats.sampler_logp + (1 - sampler) * stats.target_logp
