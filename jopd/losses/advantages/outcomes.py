"""How good the sampled token was, for the outcome of its response."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from jaxtyping import ScalarLike as Scalar

from jopd.losses.advantages.tokens import log_ratio
from jopd.losses.token_stats import TokenStats, reads
from jopd.losses.validation import check_range


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
