"""How good the sampled token was, for the outcome of its response."""

from jaxtyping import Array, Float

from jopd.losses.stats import TokenStats, scope


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
    >>> import jax.numpy as jnp
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
