"""What training changes: parameters, optimizer state, and the step count."""

from collections.abc import Collection, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jopd import sharding
from jopd.train.update_guard import Guard, init_guard


class TrainState(NamedTuple):
  """All that an update reads and returns; nothing frozen is in it.

  There is no random key: the keys of a step are a function of the config's
  seed, the stage and the step, so resuming cannot lose them.

  Attributes:
    step: int32 scalar, updates of this stage, made or skipped.
    params: float32 master weights.
    opt_state: of the optimizer.
    teachers: role -> float32 parameters of a teacher that follows the student.
    guard: which updates were skipped.
  """

  step: jax.Array
  params: dict
  opt_state: optax.OptState
  teachers: dict
  guard: Guard


def init_state(
  params, tx: optax.GradientTransformation, teachers: Mapping | None = None
) -> TrainState:
  """A state at step 0."""
  opt_state = tx.init(params)
  return TrainState(
    jnp.int32(0), params, opt_state, dict(teachers or {}), init_guard()
  )


def state_shardings(
  mesh, param_shardings, params, tx, roles: Collection[str] = ()
) -> TrainState:
  """Where each array of the state lives: moments beside their parameters.

  Args:
    mesh: of the run.
    param_shardings: of the parameters that are trained.
    params: these, or their shapes.
    tx: optimizer.
    roles: of the teachers that follow the student; they have its architecture.
  """
  everywhere = sharding.replicated(mesh)
  return TrainState(
    everywhere,
    param_shardings,
    sharding.optimizer_shardings(tx, params, param_shardings),
    dict.fromkeys(roles, param_shardings),
    Guard(*[everywhere] * len(Guard._fields)),
  )
