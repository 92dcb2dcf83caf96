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
  """

  step: jax.Array  # int32 scalar: updates of this stage, made or skipped
  params: dict  # float32 master weights
  opt_state: optax.OptState
  followers: dict  # role -> float32 parameters of a teacher that moves
  guard: Guard  # which updates were skipped
  origin: dict  # params at the last look ahead, see foresight.py; or {}


def init_state(
  params,
  tx: optax.GradientTransformation,
  followers: Mapping | None = None,
  origin: Mapping | None = None,
) -> TrainState:
  """A state at step 0."""
  opt_state = tx.init(params)
  followers, origin = dict(followers or {}), dict(origin or {})
  return TrainState(
    jnp.int32(0), params, opt_state, followers, init_guard(), origin
  )


def state_shardings(
  mesh,
  param_shardings,
  params,
  tx,
  roles: Collection[str] = (),
  *,
  looks_ahead: bool = False,
) -> TrainState:
  """Where each array of the state lives: moments beside their parameters.

  Roles are those of the followers, which have the student's architecture. So
  has the origin, where the stage looks ahead.
  """
  everywhere = sharding.replicated(mesh)
  return TrainState(
    everywhere,
    param_shardings,
    sharding.optimizer_shardings(tx, params, param_shardings),
    dict.fromkeys(roles, param_shardings),
    Guard(*[everywhere] * len(Guard._fields)),
    param_shardings if looks_ahead else {},
  )
