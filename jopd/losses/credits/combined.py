"""Credits that are made of another one."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from jaxtyping import ScalarLike as Scalar

from jopd.losses.credits.tokens import log_ratio
from jopd.losses.ranges import check_range
from jopd.losses.stats import TokenStats, scope


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
