"""Which distribution the student is pulled to.

A target maps the log-probs of every teacher, by name, to one [*B, V] array.
"""

from jaxtyping import Array, Float


def teacher(
  logps: dict[str, Float[Array, '*B V']], *, role: str = 'teacher'
) -> Float[Array, '*B V']:
  """One teacher, as it is.

  Args:
    logps: [*B, V] log-probs of each teacher, by name.
    role: which one.

  Returns:
    [*B, V] log-probs of that teacher.

  Gradients: identity; objectives stop them before the divergence.
  Raises: ValueError when there is no such teacher.

  Example:
    >>> import jax.numpy as jnp
    >>> float(teacher({'teacher': jnp.array([-0.5])})[0])
    -0.5
  """
  if role not in logps:
    raise ValueError(
      f'expected a teacher named {role!r}, got {sorted(logps)}: give one of'
      ' these names to the target (and to stats_target)'
    )
  return logps[role]
