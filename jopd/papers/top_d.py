"""TOP-D: Trust Region Policy Distillation, arXiv 2607.04751.

Its return is `losses.future_mean` of `proximal_log_ratio`, whitened. The
formulas are those of a pull request to another library.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float
from jaxtyping import ScalarLike as Scalar

from jopd.losses.advantages import log_ratio
from jopd.losses.token_stats import (
  TokenStats,
  group_sum,
  reads,
  row_sum,
  same_group,
)
from jopd.losses.validation import check_range


@reads('token')
def proximal_log_ratio(
  stats: TokenStats, *, share: Scalar
) -> Float[Array, '*B']:
  """The log-ratio to a target near the student, log(a q/p + 1 - a).

  The target is the mixture a q + (1 - a) p instead of q: no token is worse than
  log(1 - a), and good ones are worth a little less. `clip` has a floor with an
  edge; this one is smooth.

  Args:
    stats: TokenStats with a target.
    share: a in (0, 1], of the target; may be traced. 1 is `log_ratio`.

  Returns:
    [*B] advantages, nats, at least log(1 - a).

  Gradients: none; `policy_gradient` with this advantage descends the reverse KL
    to the mixture, a constant, which is 0 at p = q alone.
  Raises: ValueError when share is outside (0, 1], or there is no target.
  References: arXiv 2607.04751, the immediate part of its return.

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


@reads('group')
def whiten(
  stats: TokenStats,
  *,
  advantage: Callable[[TokenStats], Float[Array, 'B T']] = log_ratio,
) -> Float[Array, 'B T']:
  """An advantage minus its mean over a group's tokens, over their deviation.

  The scale of the advantage is lost: a student near its teacher takes steps as
  large as one far from it. The mean is a baseline, the same for all tokens of
  all responses to a prompt.

  Args:
    stats: TokenStats of whole groups, [B, T].
    advantage: TokenStats -> [B, T].

  Returns:
    [B, T] advantages, without unit; mean 0 and deviation 1 over the tokens of a
    group that count.

  Gradients: none.
  Numerics: 1e-6 is added to the deviation, so equal advantages give 0.
  Raises: ValueError when the rows have no group.
  References: arXiv 2607.04751.

  Example:
    >>> stats = TokenStats(
    ...   student_logp=jnp.zeros((1, 2)),
    ...   target_logp=jnp.array([[1.0, 3.0]]),
    ...   mask=jnp.ones((1, 2), bool),
    ...   group=jnp.zeros((1, 2), int),
    ... )
    >>> [round(c, 4) for c in whiten(stats)[0].tolist()]
    [-1.0, 1.0]
  """
  same = same_group(stats)
  total = lambda x: group_sum(same, row_sum(stats, x))[:, None]
  each = advantage(stats)
  tokens = jnp.maximum(total(jnp.ones_like(each)), 1.0)
  away = each - total(each) / tokens
  return away / (jnp.sqrt(total(jnp.square(away)) / tokens) + 1e-6)
