"""Teachers that follow the student: (own, student, step) -> own.

Functions of one array each of the two parameter trees, float32, inside the
learner's program: what follows is part of the train state, so it is restored
and donated with it. Step counts the updates of the stage; the one that was just
made is among them.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float
from jaxtyping import ScalarLike as Scalar


def ema(
  own: Float[Array, '*S'],
  student: Float[Array, '*S'],
  step: Scalar,
  *,
  decay: float,
) -> Float[Array, '*S']:
  """The exponential moving average, decay * own + (1 - decay) * student.

  Args:
    own: [*S] of the follower.
    student: [*S] after its update.
    step: updates made.
    decay: in [0, 1]; half of a change is taken over in log 2 / (1 - decay)
      updates, nearly. 0 is the student, 1 stands still.

  Returns:
    [*S] of the follower from now on.

  Raises: ValueError when decay is out of range.

  Example: a tenth of the way from 1 to 2.
    >>> float(ema(jnp.float32(1), jnp.float32(2), 1, decay=0.9))
    1.100000023841858
  """
  if not 0 <= decay <= 1:
    raise ValueError(f'decay must be in [0, 1], got {decay}')
  # As a step towards the student, and not as a sum of two products: parameters
  # that agree then stay what they are, to the last bit.
  return own + (1 - decay) * (student - own)


def periodic(
  own: Float[Array, '*S'],
  student: Float[Array, '*S'],
  step: Scalar,
  *,
  every: int,
) -> Float[Array, '*S']:
  """The student as it was at the last multiple of `every` updates.

  Args:
    own: [*S] of the follower.
    student: [*S] after its update.
    step: updates made.
    every: >= 1, updates from one periodic to the next.

  Returns:
    [*S] of the follower from now on.

  Raises: ValueError when every is below 1.

  Example: the third update is not the second's multiple, the fourth is.
    >>> old, new = jnp.float32(1), jnp.float32(2)
    >>> [float(periodic(old, new, step, every=2)) for step in (3, 4)]
    [1.0, 2.0]
  """
  if every < 1:
    raise ValueError(f'every must be at least 1, got {every}')
  return jnp.where(jnp.asarray(step) % every == 0, student, own)
