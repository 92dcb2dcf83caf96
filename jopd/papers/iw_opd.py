"""IW-OPD: Position Bias of On-Policy Distillation, arXiv 2606.22600."""

import jax.numpy as jnp
from jaxtyping import Array, Float
from jaxtyping import ScalarLike as Scalar

from jopd.losses.token_stats import TokenStats, reads, stat_named
from jopd.losses.validation import check_range


@reads('row')
def ahead_of_disagreement(
  stats: TokenStats, *, most: Scalar = 1.5
) -> Float[Array, 'B T']:
  """Larger weights before student and teacher diverge: 1 + (most - 1) (1 - F).

  F is the share of the response's |log q - log p| that lies before the token.
  Late tokens follow prefixes that the teacher would not have written, so its
  log-probs there are worth less.

  Args:
    stats: TokenStats of whole rows, [B, T], with a target.
    most: >= 1, the weight of the first token; may be traced. 1 is `uniform`.

  Returns:
    [B, T] weights in [1, most], falling along the row.

  Gradients: none; a weight is a constant.
  Raises: ValueError when most is below 1.
  References: arXiv 2606.22600.

  Example: of the disagreement, 0, 1/4 and 3/4 lie before the three tokens.
    >>> stats = TokenStats(
    ...   student_logp=jnp.zeros((1, 3)),
    ...   target_logp=jnp.array([[-1.0, 2.0, -1.0]]),
    ...   mask=jnp.ones((1, 3), bool),
    ... )
    >>> ahead_of_disagreement(stats, most=2.0).tolist()
    [[2.0, 1.75, 1.25]]
  """
  check_range('[1, inf)', most=most)
  ratio = stat_named(stats, 'log_ratio')
  apart = jnp.where(stats.mask, jnp.abs(ratio), 0.0)
  before = jnp.cumsum(apart, axis=1) - apart
  total = jnp.sum(apart, axis=1, keepdims=True)
  share = before / jnp.where(total > 0, total, 1.0)
  return 1 + (most - 1) * (1 - share)
