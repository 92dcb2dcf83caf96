"""The numbers that keep random streams apart, all in one place.

A key of JAX is folded with a number to get another key. The numbers below are
beyond those that count something (steps, rows), so no two streams meet.
"""

import jax

# Folded into the key of `config.seed`.
WEIGHTS, EVALUATION, STAGES = range(3)

# Folded into the key of a stage, in which steps have the numbers from 0.
ADAPTERS = 2**32 - 1
HELD_OUT = 2**32 - 2

# Folded into the key of a step, in which rows have the numbers from 0.
SOURCE_DRAW = 2**31


def source_key(key: jax.Array, index: int) -> jax.Array:
  """The key with which a response source samples in a step.

  Two sources with the same weights would otherwise write the same responses.

  Args:
    key: of the step.
    index: of the source in `Rollouts.sources`; 0 has the key of the step.
  """
  return jax.random.fold_in(key, 2**32 - index) if index else key


def data_seed(seed: int, stage: int) -> int:
  """The seed of a stage's data order.

  Not seed + stage: stage 1 of one seed would be stage 0 of the next.
  """
  return (1000 * seed + stage) % 2**32
