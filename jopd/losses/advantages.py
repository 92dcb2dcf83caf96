"""Advantages of the sampled token: (TokenStats) -> [*B], for `policy_gradient`.

An advantage must depend on the sampled token. One that is the same for every
token, such as a KL, has an expected gradient of zero. What one paper alone
needs is in `jopd.papers`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from jaxtyping import ScalarLike as Scalar

from jopd.losses.token_stats import TokenStats, reads
from jopd.losses.validation import check_range


@reads('token')
def log_ratio(stats: TokenStats) -> Float[Array, '*B']:
  """The token's log-ratio, log q - log p: the right use of k1.

  Args:
    stats: TokenStats with a target.

  Returns:
    [*B] advantages, nats. Their mean over tokens sampled from the student is
    -KL(student || target), so on average they are negative by construction.

  Gradients: none; `policy_gradient` with this advantage descends the reverse
    KL.
  Raises: ValueError when there is no target.
  References: Zhu et al., arXiv 2605.11182, eq. 4-5.
  """
  if stats.log_ratio is None:
    raise ValueError(
      'log_ratio compares with a target and the term has no teacher: add one'
      " to teachers, or use another advantage, such as 'group_advantage'"
    )
  return stats.log_ratio


@reads('token')
def centered_log_ratio(stats: TokenStats) -> Float[Array, '*B']:
  """The log-ratio minus its mean, log q - log p + KL(p || q).

  The baseline -KL is exact and needs no value network: it is a sum over the
  vocabulary, known at every token. It does not depend on the sampled token, so
  the expected gradient is that of `log_ratio`, and the mean of the squared
  advantage falls by KL^2. The variance of the gradient mostly falls with it,
  but not where a peaked student is far from its target.

  Args:
    stats: TokenStats with a target.

  Returns:
    [*B] advantages, nats, of mean 0 over tokens sampled from the student.

  Gradients: none; `policy_gradient` with this advantage descends the reverse
    KL.
  Raises: ValueError when there is no target.
  References: the baseline of vOPD; that it removes the sign which most tokens
    share: Fu et al., arXiv 2603.25562, section 3.
  """
  return log_ratio(stats) + stats.reverse_kl


@reads('token', reward=True)
def reward(stats: TokenStats) -> Float[Array, '*B']:
  """The reward of the token's response, as it is.

  The expected gradient is that of the expected reward. The variance is large:
  with several responses to a prompt use `group_advantage`.

  Args:
    stats: TokenStats with rewards.

  Returns:
    [*B] advantages, in the unit of the reward.

  Gradients: none; `policy_gradient` with this advantage ascends the mean
    reward.
  Raises: ValueError when there are no rewards.
  """
  if stats.reward is None:
    raise ValueError(
      'the term reads rewards and there are none: use a response source that'
      ' samples, on data with answers'
    )
  return stats.reward


@reads('token', reward=True)
def group_advantage(
  stats: TokenStats, *, scale: str = 'std'
) -> Float[Array, '*B']:
  """The reward relative to its group, (r - mean) / (std + 1e-6): GRPO.

  Every token of a response has the same one. A group of equal rewards gets 0.
  The mean contains the response itself, which shortens the gradient by
  1 - 1/G: with scale 'none', coefficient G / (G - 1) is leave-one-out (RLOO,
  arXiv 2402.14740) exactly.

  Args:
    stats: TokenStats with rewards.
    scale: 'std' divides by the group's deviation, so that prompts which are
      nearly always or nearly never answered weigh more. 'none' does not.

  Returns:
    [*B] advantages; without unit, or with 'none' in that of the reward.

  Gradients: none; with 'none', `policy_gradient` with this advantage ascends
    the mean reward.
  Raises: ValueError when there are no rewards, or scale is neither.
  References: 'std': Shao et al., DeepSeekMath, arXiv 2402.03300. 'none': Liu et
    al., Understanding R1-Zero-Like Training, arXiv 2503.20783.

  Example: one right answer of four is 3/4, or sqrt(3) deviations, above 1/4.
    >>> stats = TokenStats(
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


@reads('token', reward=True)
def scaled_advantage(
  stats: TokenStats,
  *,
  power: Scalar,
  clip: Scalar = 0.2,
  mix: Scalar = 1.0,
  above: Scalar = -jnp.inf,
  advantage: Callable[[TokenStats], Float[Array, '*B']] = group_advantage,
) -> Float[Array, '*B']:
  """An advantage scaled by the target, A (1 - mix + mix w): RLSD, RLRT.

  w = clip((q / p)^(power sign A), 1 - clip, 1 + clip). The reward decides the
  direction, the target only the size, so a teacher that reads more than the
  student cannot leak it. At power 1 tokens that the target confirms are moved
  further, at power -1 those that it would not have sampled.

  Args:
    stats: TokenStats with a target and rewards.
    power: 1 is RLSD, -1 RLRT, 0 the advantage itself. May be traced, like all
      settings here.
    clip: in [0, 1), how far w may leave 1.
    mix: in [0, 1], the share of w.
    above: responses of a smaller reward keep their advantage. RLRT scales right
      ones alone: with rewards 0 and 1, above 0.5.
    advantage: TokenStats -> [*B], the advantage.

  Returns:
    [*B] advantages, in the unit of the advantage and of its sign.

  Gradients: none.
  Raises: ValueError when clip or mix is out of range, or there is no target, or
    no reward.
  References: RLSD, arXiv 2604.03128, whose 0.2 and mix, 0.5 falling to 0 in 50
    steps, are those of a re-implementation. RLRT, arXiv 2605.10781, from
    reading notes; its clip and mix were not found, RLSD's are used.

  Example: q / p = 1.1 at a token of a good and of a bad response.
    >>> stats = TokenStats(
    ...   student_logp=jnp.zeros(2),
    ...   target_logp=jnp.log(jnp.full(2, 1.1)),
    ...   reward=jnp.array([1.0, 0.0]),
    ...   group_mean=jnp.full(2, 0.5),
    ...   group_std=jnp.full(2, 0.5),
    ... )
    >>> [round(float(c), 4) for c in scaled_advantage(stats, power=1.0)]
    [1.1, -0.9091]
  """
  check_range('[0, 1)', clip=clip)
  check_range('[0, 1]', mix=mix)
  advantage = advantage(stats)
  ratio = jnp.exp(power * jnp.sign(advantage) * log_ratio(stats))
  scale = jnp.clip(ratio, 1 - clip, 1 + clip)
  scale = jnp.where(reward(stats) < above, 1.0, scale)
  return advantage * (1 - mix + mix * scale)


@reads('row')
def discounted_return(
  stats: TokenStats,
  *,
  gamma: Scalar,
  advantage: Callable[[TokenStats], Float[Array, 'B T']] = log_ratio,
) -> Float[Array, 'B T']:
  """The discounted sum of advantages, sum over u >= t of gamma^(u - t) c_u.

  It counts what a token does to the prefixes of later tokens. gamma 0 is
  `advantage` itself, with the least variance, O(T^2) in the length. gamma 1 is
  the exact gradient of the sequence's reverse KL, O(T^4). Not for centered
  advantages: later ones have mean 0 at their own prefixes, so they add variance
  and nothing else.

  Args:
    stats: TokenStats of whole rows, [B, T], with a target.
    gamma: in [0, 1], may be traced.
    advantage: TokenStats -> [B, T], of each token by itself.

  Returns:
    [B, T] advantages, nats; sums run over the tokens that count.

  Gradients: none.
  Raises: ValueError when gamma is outside [0, 1].
  References: Fu et al., Revisiting On-Policy Distillation, arXiv 2603.25562,
    section 3.

  Example: log-ratios of -1 at three tokens.
    >>> stats = TokenStats(
    ...   student_logp=jnp.zeros((1, 3)),
    ...   target_logp=-jnp.ones((1, 3)),
    ...   mask=jnp.ones((1, 3), bool),
    ... )
    >>> discounted_return(stats, gamma=0.5).tolist()
    [[-1.75, -1.5, -1.0]]
  """
  check_range('[0, 1]', gamma=gamma)
  each = jnp.where(stats.mask, advantage(stats), 0.0)

  def back(later, now):
    total = now + gamma * later
    return total, total

  zero = jnp.zeros_like(each[:, 0])
  return jax.lax.scan(back, zero, each.T, reverse=True)[1].T


@reads('row')
def future_mean(
  stats: TokenStats,
  *,
  own: Scalar,
  advantage: Callable[[TokenStats], Float[Array, 'B T']] = log_ratio,
) -> Float[Array, 'B T']:
  """The mean of the later advantages c_u, u > t, plus own * c_t.

  Like `discounted_return` at gamma 1, but the later part does not grow with the
  length. The gradient is therefore not that of a sum over the sequence.

  Args:
    stats: TokenStats of whole rows, [B, T], with a target.
    own: factor of the token's own advantage; may be traced. 0 is MiniLLM's long
      part, 1 is TOP-D's return.
    advantage: TokenStats -> [B, T], of each token by itself.

  Returns:
    [B, T] advantages, nats. Means run over the tokens that count; after the
    last one the mean is 0.

  Gradients: none.
  References: Gu et al., MiniLLM, arXiv 2306.08543, length normalisation;
    TOP-D, arXiv 2607.04751.

  Example: advantages -1, -2, -4: the means of later ones are -3, -4 and 0.
    >>> stats = TokenStats(
    ...   student_logp=jnp.zeros((1, 3)),
    ...   target_logp=-jnp.array([[1.0, 2.0, 4.0]]),
    ...   mask=jnp.ones((1, 3), bool),
    ... )
    >>> future_mean(stats, own=1.0).tolist()
    [[-4.0, -6.0, -4.0]]
  """
  each = jnp.where(stats.mask, advantage(stats), 0.0)
  after = lambda x: jnp.sum(x, axis=1, keepdims=True) - jnp.cumsum(x, axis=1)
  left = after(stats.mask.astype(jnp.float32))
  return own * each + after(each) / jnp.maximum(left, 1)


@reads('token')
def clip(
  stats: TokenStats,
  *,
  low: Scalar = -jnp.inf,
  high: Scalar = jnp.inf,
  advantage: Callable[[TokenStats], Float[Array, '*B']] = log_ratio,
) -> Float[Array, '*B']:
  """An advantage clipped to [low, high], so that no token dominates.

  A bound is a bias: below it, every token counts as equally bad.

  Args:
    stats: TokenStats with a target.
    low: the least advantage, nats. A token that the target almost excludes has
      -20 and less.
    high: the largest advantage, nats.
    advantage: TokenStats -> [*B].

  Returns:
    [*B] advantages, nats.

  Gradients: none.
  """
  return jnp.clip(advantage(stats), low, high)
