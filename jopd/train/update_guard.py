"""Which updates are not made: not finite, or of a gradient that jumps.

Decided inside the learner's program. What is known of the updates before is
part of the train state, so that a resumed run decides alike.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
from jaxtyping import ScalarLike as Scalar

# Gradient norms whose median says what is usual.
WINDOW = 32


class Guard(NamedTuple):
  """What became of the updates of a stage until now."""

  skipped: Int[Array, '']  # of all
  in_a_row: Int[Array, '']  # of the last ones; 0 if the last one was made
  norms: Float[Array, '32']  # of those made last; NaN where there was none yet


def init_guard() -> Guard:
  """Before the first update."""
  norms = jnp.full(WINDOW, jnp.nan, jnp.float32)
  return Guard(jnp.int32(0), jnp.int32(0), norms)


def judge(
  guard: Guard, loss: Scalar, norm: Scalar, *, spike: float
) -> tuple[Bool[Array, ''], Guard]:
  """Whether an update may be made, and what is known after it.

  An update is skipped when its loss or the norm of its gradient is not finite,
  or when that norm is more than `spike` times the median of the last 32 norms.
  Skipped updates and those of norm 0 do not enter the median. A gradient that
  is larger from now on is therefore skipped until the run stops: raise `spike`.

  Args:
    guard: before the update.
    loss: of the update.
    norm: >= 0, of its gradient before clipping.
    spike: static; 0 sets no bound. No norm is a spike before there are 32.

  Returns:
    Scalar bool, and the guard from now on.

  Gradients: none; every argument is a number that is already known.

  Example: an update is not made, one after it is.
    >>> guard = init_guard()
    >>> for loss in (jnp.nan, 1.0):
    ...   made, guard = judge(guard, loss, jnp.float32(2), spike=0.0)
    ...   print(bool(made), int(guard.skipped), int(guard.in_a_row))
    False 1 1
    True 1 0
  """
  made = jnp.isfinite(loss) & jnp.isfinite(norm)
  if spike:
    # Comparisons with NaN are false: there is no median yet.
    made &= ~(norm > spike * jnp.median(guard.norms))
  counts = made & (norm > 0)
  newest = jnp.roll(guard.norms, -1).at[-1].set(norm)
  return made, Guard(
    guard.skipped + ~made,
    jnp.where(made, 0, guard.in_a_row + 1),
    jnp.where(counts, newest, guard.norms),
  )


def keep_if(made: Bool[Array, ''], new, old):
  """The new tree if an update is made, else the old one, to the last bit."""
  return jax.tree.map(lambda n, o: jnp.where(made, n, o), new, old)
