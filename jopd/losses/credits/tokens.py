"""How good the sampled token was, for a teacher."""

from jaxtyping import Array, Float

from jopd.losses.stats import TokenStats, scope


@scope('token')
def log_ratio(stats: TokenStats) -> Float[Array, '*B']:
  """The token's log-ratio, log q - log p: what k1 is good for.

  Args:
    stats: TokenStats with a target.

  Returns:
    [*B] credits, nats. Their mean over tokens sampled from the student is
    -KL(student || target), so on average they are negative by construction.

  Gradients: none; `policy_gradient` with this credit descends the reverse KL.
  Raises: ValueError when there is no target.
  References: Zhu et al., arXiv 2605.11182, eq. 4-5.
  """
  if stats.log_ratio is None:
    raise ValueError(
      'the log-ratio compares with a target, and there is no teacher: give the'
      ' term one, or another credit'
    )
  return stats.log_ratio


@scope('token')
def centered_log_ratio(stats: TokenStats) -> Float[Array, '*B']:
  """The log-ratio above its own mean, log q - log p + KL(p || q).

  The baseline -KL is exact and needs no value network: it is a sum over the
  vocabulary, known at every token. It does not depend on the sampled token, so
  the expected gradient is that of `log_ratio`, while the mean of the squared
  credit falls by KL^2. The gradient's variance mostly falls with it; not where
  a peaked student is far from its target.

  Args:
    stats: TokenStats with a target.

  Returns:
    [*B] credits, nats, of mean 0 over tokens sampled from the student.

  Gradients: none; `policy_gradient` with this credit descends the reverse KL.
  References: the baseline of vOPD; of the many signs that it removes, Fu et
    al., arXiv 2603.25562, section 3.
  """
  return log_ratio(stats) + stats.reverse_kl
