"""From an advantage to a loss whose gradient is a policy gradient.

Each takes (student_logp, old_logp, advantage), all [*B] on the sampled token,
and returns [*B]. Gradient flows to student_logp only. old_logp is that of the
old policy, see `old_policies`: the student itself (ratio 1) or the sampler
(importance weighting).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from jaxtyping import ScalarLike as Scalar

from jopd.losses.distributions import finite


def reinforce(
  student_logp: Float[Array, '*B'],
  old_logp: Float[Array, '*B'],
  advantage: Float[Array, '*B'],
) -> Float[Array, '*B']:
  """The policy gradient, -advantage * exp(student_logp - old_logp).

  With the student as old policy the gradient is that of -advantage *
  student_logp, and the value is -advantage, which for `log_ratio` estimates the
  reverse KL. With the sampler it is the importance-weighted policy gradient.

  Args:
    student_logp: [*B] log-prob of the sampled token. Gradient flows.
    old_logp: [*B] the old policy's log-prob of it. Constant.
    advantage: [*B] how good it was, higher is better. Constant.

  Returns:
    [*B] losses.

  Gradients: -advantage * ratio * grad log p; unbiased for the expected
    advantage when tokens are sampled from the old policy.
  Numerics: the ratio is unbounded; see `ppo_clip`.

  Example:
    >>> loss, grad = jax.value_and_grad(reinforce)(
    ...   jnp.array(-2.0), jnp.array(-2.0), jnp.array(0.5)
    ... )
    >>> float(loss), float(grad)
    (-0.5, -0.5)
  """
  return -_ratio(student_logp, old_logp) * jax.lax.stop_gradient(advantage)


def ppo_clip(
  student_logp: Float[Array, '*B'],
  old_logp: Float[Array, '*B'],
  advantage: Float[Array, '*B'],
  *,
  low: Scalar = 0.2,
  high: Scalar = 0.2,
) -> Float[Array, '*B']:
  """PPO's pessimistic clip, -min(r c, clip(r, 1 - low, 1 + high) c).

  For several updates on one batch of rollouts, with the sampler as old policy.
  With the student the ratio is 1 and it is `reinforce`.

  Args:
    student_logp: [*B] log-prob of the sampled token. Gradient flows.
    old_logp: [*B] the old policy's log-prob of it. Constant.
    advantage: [*B] how good it was, higher is better. Constant.
    low: how far below 1 the ratio may fall before a bad token is left alone.
    high: how far above 1 it may rise before a good token is left alone.

  Returns:
    [*B] losses.

  Gradients: as `reinforce`, and 0 where the clip binds.
  References: Schulman et al., Proximal Policy Optimization, arXiv 1707.06347,
    eq. 7.

  Example: the ratio is 2, and a good token counts no more than 1.2 times.
    >>> clip = ppo_clip(jnp.log(0.5), jnp.log(0.25), jnp.array(1.0))
    >>> round(float(clip), 4)
    -1.2
  """
  advantage = jax.lax.stop_gradient(advantage)
  ratio = _ratio(student_logp, old_logp)
  bounded = jnp.clip(ratio, 1 - low, 1 + high)
  return -jnp.minimum(ratio * advantage, bounded * advantage)


def _ratio(student_logp, old_logp):
  """The probability ratio, differentiable in the student alone."""
  old_logp = finite(jax.lax.stop_gradient(old_logp))
  return jnp.exp(finite(student_logp) - old_logp)
