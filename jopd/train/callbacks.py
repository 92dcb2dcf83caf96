"""What a stage changes by what it measures: its pace, and where it stands."""

from collections.abc import Callable, Mapping
import logging

import jax
import jax.numpy as jnp
import numpy as np

from jopd import sharding
from jopd.compilation import Program
from jopd.train.controllers import Pace
from jopd.train.metrics import MetricsLog
from jopd.train.stage import Run, Stage
from jopd.train.state import TrainState
from jopd.train.weight_extrapolation import extrapolate, look

_log = logging.getLogger(__name__)


class Course:
  """Takes note of every step; the loop asks it what comes next.

  Args:
    stage: whose rules are followed.
    run: whose mesh and clock are used.
    student: (state) -> all parameters of the student.
    shardings: of `state.params`.
    log: gets what is measured on held-out prompts.
  """

  def __init__(
    self,
    stage: Stage,
    run: Run,
    student: Callable[[TrainState], dict],
    shardings: dict,
    log: MetricsLog,
  ):
    self._stage, self._run = stage, run
    self._student, self._log = student, log
    self._pace = Pace(stage.controllers)
    self._extrapolate = Program(
      f'{stage.name}: extrapolation',
      extrapolate,
      out_shardings=shardings,
      say=_log.info,
      clock=run.clock,
    )

  def controlled(self) -> dict[str, float]:
    """The controlled scalars of the step to come."""
    return self._pace.values()

  def after(self, state: TrainState, step: int, row: Mapping) -> TrainState:
    """Measures, looks ahead and paces, where it is time to.

    Args:
      state: after the step; consumed.
      step: batches of prompts that have been learnt.
      row: of the log.

    Returns:
      The state to go on from.
    """
    stage = self._stage
    how = stage.rollouts.sampling(step - 1, self.controlled())
    if stage.held_out_every and step % stage.held_out_every == 0:
      shown = self._measure(self._student(state), how['limit'])
      self._log.write(stage.name, step, 'held_out', shown)
      row = {f'held_out/{n}': x for n, x in shown.items()} | dict(row)
    if stage.weight_extrapolation:
      state = self._look_ahead(state, step, how['limit'])
    self._pace.advance(row)
    return state

  def get_state(self) -> dict:
    """What `set_state` needs to go on from here; plain JSON, tiny."""
    return self._pace.get_state()

  def set_state(self, state: dict) -> None:
    """Goes on after the step that `get_state` followed."""
    self._pace.set_state(state)

  def _measure(self, params: dict, limit: int | None) -> dict[str, float]:
    with self._run.clock('eval'):
      return self._stage.held_out(params, limit)

  def _look_ahead(self, state: TrainState, step: int, limit) -> TrainState:
    """The state where the held-out reward is best."""

    def place(further: float) -> dict:
      if not further:
        return state.params
      everywhere = sharding.replicated(self._run.mesh)
      far = sharding.put(np.float32(further), everywhere)
      return self._extrapolate(state.params, state.origin, far)

    score = lambda further: self._measure(place(further), limit)['reward']
    further, seen = look(self._stage.weight_extrapolation, step, score)
    if not seen:
      return state
    self._log.write(self._stage.name, step, 'foresight', seen)
    params = place(further)
    # A copy, for else two arrays of the state were one, and donated twice.
    return state._replace(params=params, origin=jax.tree.map(jnp.copy, params))
