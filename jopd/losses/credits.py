"""How good the sampled token was: (TokenStats) -> [*B]."""

from jaxtyping import Array, Float

from jopd.losses.stats import TokenStats


def log_ratio(stats: TokenStats) -> Float[Array, '*B']:
  """The token's log-ratio, log q - log p: what k1 is good for.

  Args:
    stats: TokenStats with a target.

  Returns:
    [*B] credits, nats. The mean over tokens sampled from the student is
    -KL(student || target), so most credits are negative by construction.

  Gradients: none; `policy_gradient` with this credit descends the reverse KL.
  References: Zhu et al., arXiv 2605.11182, eq. 4-5.
  """
  return stats.target_logp - stats.student_logp
