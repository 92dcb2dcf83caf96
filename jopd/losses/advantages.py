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

from jopd.losses.token_stats import (
  TokenStats,
  group_sum,
  reads,
  row_sum,
  same_group,
)
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


@reads('token', reward=True)
def reward(stats: TokenStats) -> Float[Array, '*B']:
  """The reward of the token's response, as it is.

  Its expected gradient is that of the expected reward, and its variance the
  largest: with several responses to a prompt take `group_advantage`.

  Args:
    stats: TokenStats with rewards.

  Returns:
    [*B] advantages, in the unit of the reward.

  Gradients: none; `policy_gradient` with this advantage ascends the mean reward.
  Raises: ValueError when nobody graded.
  """
  if stats.reward is None:
    raise ValueError(
      'it reads rewards, and there are none: sample the responses, to prompts'
      ' that have answers to grade by'
    )
  return stats.reward


@reads('token', reward=True)
def group_advantage(
  stats: TokenStats, *, scale: str = 'std'
) -> Float[Array, '*B']:
  """The reward above the mean of its group, (r - mean) / (std + 1e-6).

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

  Gradients: none; with 'none', `policy_gradient` with this advantage ascends the
    mean reward.
  Raises: ValueError when nobody graded, or scale is none of the two.
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
  """An advantage that the teacher scales, A (1 - mix + mix w): RLSD, RLRT.

  w = clip((q / p)^(power sign A), 1 - clip, 1 + clip). The outcome alone says
  in which direction, the teacher only how far: what a teacher knows beyond the
  student's prompt can then not leak into it. At power 1 tokens that the teacher
  confirms are moved further, at power -1 those that it would not have chosen.

  Args:
    stats: TokenStats with a target and an outcome.
    power: 1 is RLSD, -1 RLRT, 0 the advantage itself. May be traced, like all
      settings here.
    clip: in [0, 1), how far w may leave 1.
    mix: in [0, 1], how much of w is taken.
    above: responses of a smaller reward keep their advantage. RLRT scales right
      ones alone: with rewards 0 and 1, above 0.5.
    advantage: TokenStats -> [*B], the advantage.

  Returns:
    [*B] advantages, in the unit of the advantage and of its sign.

  Gradients: none.
  Raises: ValueError when clip or mix is out of range, there is no target, or
    nobody graded.
  References: RLSD, arXiv 2604.03128, whose 0.2 and mix, 0.5 falling to 0 in 50
    steps, are those of a re-implementation. RLRT, arXiv 2605.10781, from
    reading notes; its clip and mix were not found, RLSD's are used.

  Example: q / p = 1.1 in favour of a good token, of a bad one.
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
  """Advantages to come, sum over u >= t of gamma^(u - t) c_u.

  What a token does to the prefixes of later tokens, which a token's own advantage
  leaves out. gamma 0 is `advantage` itself: least variance, O(T^2) in the length.
  gamma 1 is the exact gradient of the sequence's reverse KL, O(T^4). Not for
  centered advantages: those to come have mean 0 at their own prefixes, so they add
  variance and nothing else.

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
    ...   sampler_logp=jnp.zeros((1, 3)),
    ...   group=jnp.zeros((1, 3), int),
    ...   target_logp=-jnp.ones((1, 3)),
    ...   mask=jnp.ones((1, 3), bool),
    ... )
    >>> discounted_return(stats, gamma=0.5).tolist()
    [[-1.75, -1.5, -1.0]]
  """
  check_range('[0, 1]', gamma=gamma)
  own = jnp.where(stats.mask, advantage(stats), 0.0)

  def back(later, now):
    total = now + gamma * later
    return total, total

  zero = jnp.zeros_like(own[:, 0])
  return jax.lax.scan(back, zero, own.T, reverse=True)[1].T


@reads('row')
def future_mean(
  stats: TokenStats,
  *,
  own: Scalar,
  advantage: Callable[[TokenStats], Float[Array, 'B T']] = log_ratio,
) -> Float[Array, 'B T']:
  """The mean of the later advantages, and so much of its own: own c_t + mean_u>t.

  Like `discounted_return` at gamma 1, but a long rest of a response weighs no more
  than a short one. The gradient is therefore of no sum over the sequence.

  Args:
    stats: TokenStats of whole rows, [B, T], with a target.
    own: of the token's own advantage; may be traced. 0 is MiniLLM's long part, 1
      is TOP-D's return.
    advantage: TokenStats -> [B, T], of each token by itself.

  Returns:
    [B, T] advantages, nats. Means run over the tokens that count; after the last
    one there is nothing, which counts 0.

  Gradients: none.
  References: Gu et al., MiniLLM, arXiv 2306.08543, length normalisation;
    TOP-D, arXiv 2607.04751.

  Example: advantages -1, -2, -4: the means to come are -3, -4 and nothing.
    >>> stats = TokenStats(
    ...   student_logp=jnp.zeros((1, 3)),
    ...   sampler_logp=jnp.zeros((1, 3)),
    ...   group=jnp.zeros((1, 3), int),
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
  """An advantage kept between two bounds, so that no token shouts the rest down.

  A bound is a bias: below it, every token counts as equally bad.

  Args:
    stats: TokenStats with a target.
    low: the least advantage, nats; a token the teacher all but excludes has -20
      and less.
    high: the largest advantage, nats.
    advantage: TokenStats -> [*B].

  Returns:
    [*B] advantages, nats.

  Gradients: none.
  """
  return jnp.clip(advantage(stats), low, high)


@reads('group')
def whiten(
  stats: TokenStats,
  *,
  advantage: Callable[[TokenStats], Float[Array, 'B T']] = log_ratio,
) -> Float[Array, 'B T']:
  """An advantage less its mean over a group's tokens, divided by its deviation.

  The scale of the advantage is gone: a student near its teacher takes steps as
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
  Raises: ValueError when nobody said which rows make a group.
  References: TOP-D, arXiv 2607.04751.

  Example:
    >>> stats = TokenStats(
    ...   student_logp=jnp.zeros((1, 2)),
    ...   sampler_logp=jnp.zeros((1, 2)),
    ...   group=jnp.zeros((1, 2), int),
    ...   target_logp=jnp.array([[1.0, 3.0]]),
    ...   mask=jnp.ones((1, 2), bool),
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


@reads('row')
def entropy_directed(
  stats: TokenStats,
  *,
  beta: Scalar,
  quantile: Scalar = 0.2,
  advantage: Callable[[TokenStats], Float[Array, 'B T']] = group_advantage,
) -> Float[Array, 'B T']:
  """An advantage and a pull whose direction the entropy decides: DASD.

  A + beta tanh((tau - H) / sigma) sigmoid(|d| - 1) d, with d the log-ratio over
  its mean size in the row, H the student's entropy, tau a quantile of it in the
  row and sigma its mean absolute deviation there. Where the student is sure it
  is drawn to the teacher, where it hesitates away from it; the sigmoid damps
  small differences.

  Args:
    stats: TokenStats of whole rows, [B, T], with a target and an outcome.
    beta: >= 0, may be traced. 0 is the advantage itself.
    quantile: in (0, 1], the share of the row's tokens with an entropy up to
      tau. May be traced.
    advantage: TokenStats -> [B, T], the advantage.

  Returns:
    [B, T] advantages, in the unit of the advantage.

  Gradients: none.
  Numerics: 1e-6 is added to sigma and to the mean size, so a row of one token,
    or of equal ones, is well defined.
  Raises: ValueError when beta or quantile is out of range, there is no target,
    or nobody graded.
  References: DASD, Direction-Adaptive Self-Distillation, arXiv 2605.22263, from
    reading notes, with rho = 0.2. Its beta was not found, nor whether d is
    scaled by the row, as here, or by the batch.

  Example: of two tokens the first is surer, tau is its entropy, so it has no
  pull; the second, 2 deviations above, is pushed by tanh(-2) sigmoid(0).
    >>> stats = TokenStats(
    ...   student_logp=jnp.zeros((1, 2)),
    ...   sampler_logp=jnp.zeros((1, 2)),
    ...   group=jnp.zeros((1, 2), int),
    ...   student_entropy=jnp.array([[0.0, 1.0]]),
    ...   target_logp=jnp.array([[0.5, 0.5]]),
    ...   mask=jnp.ones((1, 2), bool),
    ... )
    >>> pull = entropy_directed(stats, beta=1.0, quantile=0.5)
    >>> [round(c, 4) for c in pull[0].tolist()]
    [0.0, -0.482]
  """
  check_range('[0, inf)', beta=beta)
  check_range('(0, 1]', quantile=quantile)
  entropy, ratio, mask = stats.student_entropy, log_ratio(stats), stats.mask
  mean = lambda x: jnp.mean(
    x, axis=1, keepdims=True, where=mask | ~jnp.any(mask, 1, keepdims=True)
  )
  ascending = jnp.sort(jnp.where(mask, entropy, jnp.inf), axis=1)
  rank = jnp.ceil(quantile * jnp.sum(mask, axis=1, keepdims=True)).astype(int)
  middle = jnp.take_along_axis(ascending, jnp.maximum(rank - 1, 0), axis=1)
  spread = mean(jnp.abs(entropy - mean(entropy))) + 1e-6
  size = mean(jnp.abs(ratio)) + 1e-6
  pull = jnp.tanh((middle - entropy) / spread)
  pull *= jax.nn.sigmoid(jnp.abs(ratio) / size - 1)
  return advantage(stats) + beta * jnp.where(mask, pull * ratio / size, 0.0)


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
