"""Teachers that follow the student: (teacher, student, step) -> teacher.

Functions of one array each of the two parameter trees, float32, inside the
learner's program. `step` counts the updates of the stage, the last included.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float
from jaxtyping import ScalarLike as Scalar


def ema(
  teacher: Float[Array, '*S'],
  student: Float[Array, '*S'],
  step: Scalar,
  *,
  decay: float,
) -> Float[Array, '*S']:
  """The exponential moving average, decay * teacher + (1 - decay) * student.

  Args:
    teacher: [*S] before the update.
    student: [*S] after it.
    step: updates made; not used.
    decay: in [0, 1]; 0 is the student, 1 is a frozen teacher.

  Raises: ValueError when decay is out of range.

  Example: a tenth of the way from 1 to 2.
    >>> float(ema(jnp.float32(1), jnp.float32(2), 1, decay=0.9))
    1.100000023841858
  """
  if not 0 <= decay <= 1:
    raise ValueError(f'decay must be in [0, 1], got {decay}')
  # A step towards the student, not a sum of two products: parameters that
  # agree stay what they are, to the last bit.
  return teacher + (1 - decay) * (student - teacher)


def periodic(
  teacher: Float[Array, '*S'],
  student: Float[Array, '*S'],
  step: Scalar,
  *,
  every: int,
) -> Float[Array, '*S']:
  """The student as it was at the last multiple of `every` updates.

  Raises: ValueError when every is below 1.

  Example: 3 is no multiple of 2, 4 is.
    >>> teacher, student = jnp.float32(1), jnp.float32(2)
    >>> [float(periodic(teacher, student, n, every=2)) for n in (3, 4)]
    [1.0, 2.0]
  """
  if every < 1:
    raise ValueError(f'every must be at least 1, got {every}')
  return jnp.where(jnp.asarray(step) % every == 0, student, teacher)
