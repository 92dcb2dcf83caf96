"""Advantages that are made of another one."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from jaxtyping import ScalarLike as Scalar

from jopd.losses.advantages.tokens import log_ratio
from jopd.losses.groups import group_sum, row_sum, same_group
from jopd.losses.token_stats import TokenStats, reads
from jopd.losses.validation import check_range


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
