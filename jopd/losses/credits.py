"""How good the sampled token was: (TokenStats) -> [*B].

For `policy_gradient`. A credit must depend on the sampled token: one that is
the same whatever was sampled, such as a KL, has an expected gradient of zero.
A teacher's opinion depends on the token, an outcome on all that it led to.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from jaxtyping import ScalarLike as Scalar

from jopd.losses.ranges import check_range
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


@scope('row')
def discounted(
  stats: TokenStats,
  *,
  gamma: Scalar,
  credit: Callable[[TokenStats], Float[Array, 'B T']] = log_ratio,
) -> Float[Array, 'B T']:
  """Credits to come, sum over u >= t of gamma^(u - t) c_u.

  What a token does to the prefixes of later tokens, which a token's own credit
  leaves out. gamma 0 is `credit` itself: least variance, O(T^2) in the length.
  gamma 1 is the exact gradient of the sequence's reverse KL, O(T^4). Not for
  centered credits: those to come have mean 0 at their own prefixes, so they add
  variance and nothing else.

  Args:
    stats: TokenStats of whole rows, [B, T], with a target.
    gamma: in [0, 1], may be traced.
    credit: TokenStats -> [B, T], of each token by itself.

  Returns:
    [B, T] credits, nats; sums run over the tokens that count.

  Gradients: none.
  Raises: ValueError when gamma is outside [0, 1].
  References: Fu et al., Revisiting On-Policy Distillation, arXiv 2603.25562,
    section 3.

  Example: log-ratios of -1 at three tokens.
    >>> stats = TokenStats(
    ...   **dict.fromkeys(TokenStats._fields, jnp.zeros((1, 3)))
    ... )._replace(target_logp=-jnp.ones((1, 3)), mask=jnp.ones((1, 3), bool))
    >>> discounted(stats, gamma=0.5).tolist()
    [[-1.75, -1.5, -1.0]]
  """
  check_range('[0, 1]', gamma=gamma)
  own = jnp.where(stats.mask, credit(stats), 0.0)

  def back(later, now):
    total = now + gamma * later
    return total, total

  zero = jnp.zeros_like(own[:, 0])
  return jax.lax.scan(back, zero, own.T, reverse=True)[1].T


@scope('token')
def bounded(
  stats: TokenStats,
  *,
  low: Scalar = -jnp.inf,
  high: Scalar = jnp.inf,
  credit: Callable[[TokenStats], Float[Array, '*B']] = log_ratio,
) -> Float[Array, '*B']:
  """A credit kept between two bounds, so that no token shouts the rest down.

  A bound is a bias: below it, every token counts as equally bad.

  Args:
    stats: TokenStats with a target.
    low: the least credit, nats; a token the teacher all but excludes has -20
      and less.
    high: the largest credit, nats.
    credit: TokenStats -> [*B].

  Returns:
    [*B] credits, nats.

  Gradients: none.
  """
  return jnp.clip(credit(stats), low, high)


@scope('token')
def reward(stats: TokenStats) -> Float[Array, '*B']:
  """The reward of the token's response, as it is.

  Its expected gradient is that of the expected reward, and its variance the
  largest: with several responses to a prompt take `group_advantage`.

  Args:
    stats: TokenStats with an outcome.

  Returns:
    [*B] credits, in the unit of the reward.

  Gradients: none; `policy_gradient` with this credit ascends the mean reward.
  Raises: ValueError when nobody graded.
  """
  if stats.reward is None:
    raise ValueError(
      'it reads rewards, and there are none: sample the responses, to prompts'
      ' that have answers to grade by'
    )
  return stats.reward


@scope('token')
def group_advantage(
  stats: TokenStats, *, scale: str = 'std'
) -> Float[Array, '*B']:
  """The reward above the mean of its group, (r - mean) / (std + 1e-6).

  Every token of a response has the same one. A group of equal rewards gets 0.
  The mean contains the response itself, which shortens the gradient by
  1 - 1/G: with scale 'none', coefficient G / (G - 1) is leave-one-out (RLOO,
  arXiv 2402.14740) exactly.

  Args:
    stats: TokenStats with an outcome.
    scale: 'std' divides by the group's deviation, so that prompts which are
      nearly always or nearly never answered weigh more. 'none' does not.

  Returns:
    [*B] credits; without unit, or with 'none' in that of the reward.

  Gradients: none; with 'none', `policy_gradient` with this credit ascends the
    mean reward.
  Raises: ValueError when nobody graded, or scale is none of the two.
  References: 'std': Shao et al., DeepSeekMath, arXiv 2402.03300. 'none': Liu et
    al., Understanding R1-Zero-Like Training, arXiv 2503.20783.

  Example: one right answer of four is 3/4, or sqrt(3) deviations, above 1/4.
    >>> stats = TokenStats(**dict.fromkeys(TokenStats._fields))._replace(
    ...   reward=jnp.ones(1),
    ...   group_mean=jnp.full(1, 0.25),
    ...   group_std=jnp.full(1, 0.4330127),
    ... )
    >>> round(float(group_advantage(stats)[0]), 4)
    1.732
    >>> float(group_advantage(stats, scale='none')[0])
    0.75
  """
  if scale not in ('std', 'none'):
    raise ValueError(f"scale must be 'std' or 'none', got {scale!r}")
  above = reward(stats) - stats.group_mean
  return above / (stats.group_std + 1e-6) if scale == 'std' else above
