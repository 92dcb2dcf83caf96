"""The policy that a policy gradient takes its ratio to: (TokenStats) -> [*B].

The ratio is S / exp(old_policy), S the student's probability of the token. An
old_policy is a log-prob, a constant to the gradient, and speaks of each token by
itself.
"""

from jaxtyping import Array, Float
from jaxtyping import ScalarLike as Scalar

from jopd.losses.token_stats import TokenStats, reads
from jopd.losses.validation import check_range


@reads('token')
def student(stats: TokenStats) -> Float[Array, '*B']:
  """The student itself: the ratio is 1, for one update per rollout.

  Args:
    stats: TokenStats.

  Returns:
    [*B] log-probs, nats.

  Gradients: none; the ratio's own is that of the student's log-prob.
  """
  return stats.student_logp


@reads('token', sampler=True)
def sampler(stats: TokenStats) -> Float[Array, '*B']:
  """What sampled the token: importance weighting, for several updates.

  Args:
    stats: TokenStats.

  Returns:
    [*B] log-probs, nats.

  Gradients: none.
  """
  return stats.sampler_logp


@reads('token', sampler=True)
def geometric(stats: TokenStats, *, sampler: Scalar) -> Float[Array, '*B']:
  """Between the sampler and the target, O^a T^(1-a): the ratio of RLAD.

  The teacher moves the trust region, and the advantage picks the sign: with
  `ppo_clip`, a good token that the teacher likes more than the sampler did may
  rise further before it is clipped, and one that it likes less, less far. No
  importance weighting: its gradient is that of the sampler's ratio times
  (O / T)^(1-a), so tokens that the teacher all but excludes weigh much while
  their advantage is negative.

  Args:
    stats: TokenStats with a target.
    sampler: a in [0, 1], may be traced. 1 is `sampler`.

  Returns:
    [*B] log-probs, nats, not normalised over the vocabulary.

  Gradients: none.
  Numerics: at sampler = 1 the target is not read into the sum, so that -inf in
    it is no NaN.
  Raises: ValueError when sampler is outside [0, 1] or there is no target.
  References: RLAD, arXiv 2602.22495, trust region ratio distillation; known to
    us from reading notes. Its a was not found. Some ports add a teacher's term
    to the loss instead; that is another method.

  Example: half way between 0.1 and 0.4 lies 0.2.
    >>> import jax.numpy as jnp
    >>> stats = TokenStats(sampler_logp=jnp.log(0.1), target_logp=jnp.log(0.4))
    >>> round(float(jnp.exp(geometric(stats, sampler=0.5))), 4)
    0.2
  """
  check_range('[0, 1]', sampler=sampler)
  if stats.target_logp is None:
    raise ValueError(
      'the old_policy lies between the sampler and a target, and there is no'
      " teacher: give the term one, or take the old_policy 'sampler'"
    )
  return sampler * stats.sampler_logp + (1 - sampler) * stats.target_logp
