"""Old policies of a policy gradient: (TokenStats) -> [*B] log-probs.

The probability ratio is p / exp(old_policy), p the student's probability of the
token. An old policy is a constant to the gradient, and reads each token by
itself.
"""

from jaxtyping import Array, Float

from jopd.losses.token_stats import TokenStats, reads


@reads('token')
def student(stats: TokenStats) -> Float[Array, '*B']:
  """The student itself, [*B] nats: the ratio is 1, for one update per rollout.

  Gradients: none; that of the ratio is the gradient of the student's log-prob.
  """
  return stats.student_logp


@reads('token', sampler=True)
def sampler(stats: TokenStats) -> Float[Array, '*B']:
  """What sampled the token, [*B] nats: importance weighting.

  For several updates per rollout, and for stale rollouts.

  Gradients: none.
  """
  return stats.sampler_logp
