"""KL estimates from the sampled token, differentiated as they are.

Each takes (student_logp, target_logp) of the sampled token, both [*B], and
returns [*B] in nats. Their expectations under the student estimate the reverse
KL, but their gradients are of different divergences, because the gradient of an
estimator is not an estimator of the gradient: k2 descends the reverse KL, k3
the forward KL, k1 nothing.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jopd.losses.distributions import finite


def k1(
  student_logp: Float[Array, '*B'], target_logp: Float[Array, '*B']
) -> Float[Array, '*B']:
  """The log-ratio log p - log q: for its value, not for its gradient.

  The plain estimate of the reverse KL. As the advantage of a policy gradient
  (`advantages.log_ratio`) it is exact; differentiated it pushes down whatever
  was sampled, and teaches nothing.

  Args:
    student_logp: [*B] log-prob of the sampled token. Gradient flows.
    target_logp: [*B] the target's. Constant.

  Returns:
    [*B] nats, of either sign. An unbiased estimate of the reverse KL.

  Gradients: grad log p, without the target in it; its expectation over tokens
    sampled from the student is zero.
  References: Schulman, Approximating KL divergence (2020).

  Example:
    >>> float(k1(jnp.array(-1.0), jnp.array(-4.0)))
    3.0
  """
  target_logp = finite(jax.lax.stop_gradient(target_logp))
  return finite(student_logp) - target_logp


def k2(
  student_logp: Float[Array, '*B'], target_logp: Float[Array, '*B']
) -> Float[Array, '*B']:
  """Half the squared log-ratio, (log p - log q)^2 / 2; follows reverse KL.

  Args:
    student_logp: [*B] log-prob of the sampled token. Gradient flows.
    target_logp: [*B] the target's. Constant.

  Returns:
    [*B] nats, >= 0. A biased estimate of the reverse KL.

  Gradients: log(p / q) grad log p; its expectation over tokens sampled from the
    student is exactly the gradient of KL(student || target).
  References: Schulman, Approximating KL divergence (2020).

  Example:
    >>> float(k2(jnp.array(-1.0), jnp.array(-4.0)))
    4.5
  """
  target_logp = finite(jax.lax.stop_gradient(target_logp))
  return 0.5 * jnp.square(finite(student_logp) - target_logp)


def k3(
  student_logp: Float[Array, '*B'], target_logp: Float[Array, '*B']
) -> Float[Array, '*B']:
  """The estimate q/p - 1 - log(q/p); follows forward KL, not reverse.

  Its value is the low-variance estimate of the reverse KL; its gradient is that
  of the other direction. Use `k2` to descend the reverse KL.

  Args:
    student_logp: [*B] log-prob of the sampled token. Gradient flows.
    target_logp: [*B] the target's. Constant.

  Returns:
    [*B] nats, >= 0.

  Gradients: (1 - q / p) grad log p; its expectation over tokens sampled from
    the student is exactly the gradient of KL(target || student).
  Numerics: overflows to inf when q / p > e^88, which a token sampled from the
    student does not show.
  References: Schulman, Approximating KL divergence (2020).

  Example: e^1 - 1 - 1.
    >>> round(float(k3(jnp.array(-2.0), jnp.array(-1.0))), 4)
    0.7183
  """
  target_logp = finite(jax.lax.stop_gradient(target_logp))
  log_ratio = target_logp - finite(student_logp)
  return jnp.expm1(log_ratio) - log_ratio
