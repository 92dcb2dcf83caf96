"""How good the sampled token was by itself, for a teacher or without one."""

import jax.numpy as jnp
from jaxtyping import Array, Float
from jaxtyping import ScalarLike as Scalar

from jopd.losses.token_stats import TokenStats, reads
from jopd.losses.validation import check_range


@reads('token')
def log_ratio(stats: TokenStats) -> Float[Array, '*B']:
  """The token's log-ratio, log q - log p: what k1 is good for.

  Args:
    stats: TokenStats with a target.

  Returns:
    [*B] advantages, nats. Their mean over tokens sampled from the student is
    -KL(student || target), so on average they are negative by construction.

  Gradients: none; `policy_gradient` with this advantage descends the reverse KL.
  Raises: ValueError when there is no target.
  References: Zhu et al., arXiv 2605.11182, eq. 4-5.
  """
  if stats.log_ratio is None:
    raise ValueError(
      'the log-ratio compares with a target, and there is no teacher: give the'
      ' term one, or another advantage'
    )
  return stats.log_ratio


@reads('token')
def centered_log_ratio(stats: TokenStats) -> Float[Array, '*B']:
  """The log-ratio above its own mean, log q - log p + KL(p || q).

  The baseline -KL is exact and needs no value network: it is a sum over the
  vocabulary, known at every token. It does not depend on the sampled token, so
  the expected gradient is that of `log_ratio`, while the mean of the squared
  advantage falls by KL^2. The gradient's variance mostly falls with it; not where
  a peaked student is far from its target.

  Args:
    stats: TokenStats with a target.

  Returns:
    [*B] advantages, nats, of mean 0 over tokens sampled from the student.

  Gradients: none; `policy_gradient` with this advantage descends the reverse KL.
  References: the baseline of vOPD; of the many signs that it removes, Fu et
    al., arXiv 2603.25562, section 3.
  """
  return log_ratio(stats) + stats.reverse_kl


@reads('token')
def proximal_log_ratio(
  stats: TokenStats, *, share: Scalar
) -> Float[Array, '*B']:
  """The log-ratio to a teacher near the student, log(a q/p + 1 - a): TOP-D.

  The target is the mixture a q + (1 - a) p in the place of q: nearer, so that
  no token can be worse than log(1 - a), and good ones are worth a little less.
  `clip` has a floor with an edge; this one is smooth.

  Args:
    stats: TokenStats with a target.
    share: a in (0, 1], of the teacher; may be traced. 1 is `log_ratio`.

  Returns:
    [*B] advantages, nats, at least log(1 - a).

  Gradients: none; `policy_gradient` with this advantage descends the reverse KL to
    the mixture, a constant, whose only rest is p = q.
  Raises: ValueError when share is outside (0, 1], or there is no target.
  References: TOP-D, Trust Region Policy Distillation, arXiv 2607.04751; the
    formula as a pull request of another library states it. There it is the
    immediate part of a return: see `future_mean`.

  Example: log(1/2 * 3 + 1/2) = log 2, and the floor log(1/2).
    >>> stats = TokenStats(
    ...   student_logp=jnp.zeros(2),
    ...   target_logp=jnp.array([jnp.log(3.0), -1e9]),
    ... )
    >>> [round(float(c), 4) for c in proximal_log_ratio(stats, share=0.5)]
    [0.6931, -0.6931]
  """
  check_range('(0, 1]', share=share)
  return jnp.logaddexp(jnp.log(share) + log_ratio(stats), jnp.log1p(-share))


@reads('token')
def against_unlikely(
  stats: TokenStats, *, below: Scalar, value: Scalar = -1.0
) -> Float[Array, '*B']:
  """A fixed negative advantage for tokens that the student gave little chance.

  The control without a teacher: it sharpens the student, whatever is right. A
  method that does no better than this has not been shown to distil.

  Args:
    stats: TokenStats; a target is not read.
    below: probability in (0, 1] under which a token is charged; may be traced.
    value: the advantage of such a token, below 0; may be traced.

  Returns:
    [*B] advantages, `value` or 0.

  Gradients: none.
  Raises: ValueError when below is outside (0, 1] or value is not below 0.
  References: Does On-Policy Distillation Really Distill?, arXiv 2608.31046,
    known to us by its abstract; threshold and size are not in it.

  Example:
    >>> stats = TokenStats(student_logp=jnp.log(jnp.array([0.1, 0.6])))
    >>> against_unlikely(stats, below=0.5).tolist()
    [-1.0, 0.0]
  """
  check_range('(0, 1]', below=below)
  check_range('(-inf, 0)', value=value)
  return jnp.where(stats.student_logp < jnp.log(below), value, 0.0)
