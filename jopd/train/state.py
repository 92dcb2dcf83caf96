"""What training changes: parameters, optimizer state, and the step count."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jopd import sharding


class TrainState(NamedTuple):
  """All that a step reads and returns; nothing frozen is in it.

  There is no random key: the keys of a step are a function of the config's
  seed, the stage and the step, so resuming cannot lose them.
  """

  step: jax.Array  # int32 scalar: updates done in this stage
  params: dict  # float32 master weights
  opt_state: optax.OptState


def init_state(params, tx: optax.GradientTransformation) -> TrainState:
  """A state at step 0."""
  return TrainState(jnp.int32(0), params, tx.init(params))


def state_shardings(mesh, param_shardings, params, tx) -> TrainState:
  """Where each array of the state lives: moments beside their parameters."""
  return TrainState(
    sharding.replicated(mesh),
    param_shardings,
    sharding.optimizer_shardings(tx, params, param_shardings),
  )
