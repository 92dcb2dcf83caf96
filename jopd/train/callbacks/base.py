"""What a callback is: a setup to be made from, and methods that the loop calls.

A callback of a config is a function `(setup, *, settings) -> Callback`. The
loop calls every callback in the order of names and knows none by name.
What a callback must remember is kept in the checkpoint.
"""

from collections.abc import Callable, Mapping
import contextlib
import pathlib
from typing import Any, NamedTuple

import jax

from jopd.data.batching import PromptBatch
from jopd.train.rollout_batch import RolloutInfo, Sampled
from jopd.train.stage import Run, Stage
from jopd.train.state import TrainState


class Setup(NamedTuple):
  """What a callback is made from.

  A callback is also made where a config is only checked; there `folder`,
  `student` and `trained` are None.

  Attributes:
    name: of the callback, its key in the config.
    stage: name of the stage.
    steps: of the stage.
    mesh: of the run.
    key: of the stage; steps fold their numbers into it.
    measure: (student's parameters, max_new_tokens or None) -> mean reward,
      response_length, clipped_ratio and entropy (nats a token) of responses to
      the held-out prompts. None if the stage has no `held_out`.
    clock: seconds by phase.
    lora: whether only adapters are trained.
    folder: of the run.
    student: state -> all parameters of the student.
    trained: shapes and shardings of `state.params`.
  """

  name: str
  stage: str
  steps: int
  mesh: jax.sharding.Mesh
  key: jax.Array
  measure: Callable[[dict, int | None], dict[str, float]] | None = None
  clock: Callable = lambda phase: contextlib.nullcontext()
  lora: bool = False
  folder: pathlib.Path | None = None
  student: Callable[[TrainState], dict] | None = None
  trained: Any = None


class StepContext:
  """A step that has been dispatched, for `Callback.after_step`.

  Args:
    step: batches of prompts that have been learnt, this one included.
    state: after the step; a callback may replace it.
    sampling: settings of the sampler in this step.
    samples: the prompts that were answered in this step, and the responses;
      empty where old responses were learnt.
    fetch: () -> metrics of the step; waits for the devices.
  """

  def __init__(
    self,
    step: int,
    state: TrainState,
    sampling: Mapping[str, Any],
    samples: list[tuple[PromptBatch, RolloutInfo]],
    fetch: Callable[[], dict[str, float]],
  ):
    self.step, self.state = step, state
    self.sampling, self.samples = sampling, samples
    self._fetch = fetch
    self._metrics: dict[str, float] | None = None

  @property
  def metrics(self) -> dict[str, float]:
    """The metrics of the step, to read and to add to.

    Reading them waits for the step, which the loop otherwise does only once
    the next one has been dispatched.
    """
    if self._metrics is None:
      self._metrics = self._fetch()
    return self._metrics

  @property
  def is_fetched(self) -> bool:
    """Whether a callback has read the metrics."""
    return self._metrics is not None


class Callback:
  """A callback that does nothing.

  Attributes:
    off_policy: whether steps may learn responses of an older student, so that
      policy gradients need `old_policy='sampler'`.
    reads_metrics: whether it reads what other callbacks add to the metrics;
      it is called after the others.
  """

  off_policy = False
  reads_metrics = False

  def scalars(self) -> dict[str, float]:
    """Name -> value for `dict(controlled=name)` in the step to come."""
    return {}

  def start(self, state: TrainState) -> None:
    """Called with the first state of a stage that does not resume."""

  def around_rollout(self, step: int, sample: Callable[[], Sampled]) -> Sampled:
    """The responses that a step learns; `sample` makes the next batch."""
    return sample()

  def after_step(self, context: StepContext) -> None:
    """Called when a step has been dispatched."""

  def get_state(self) -> dict:
    """What `restore` needs, as plain JSON.

    A callback that keeps nothing in the checkpoint returns {}: it may be added
    to a run and left out again.
    """
    return {}

  def arrays(self) -> dict:
    """Arrays on the mesh that `restore` needs."""
    return {}

  def abstract(self, state: dict) -> dict:
    """Shapes and shardings of `arrays`, from what `get_state` returned."""
    return {}

  def restore(self, state: dict, arrays: dict) -> None:
    """Goes on after the step that `get_state` and `arrays` followed."""


def make_callbacks(
  specs: Mapping[str, Callable[[Setup], Callback]], setup: Setup
) -> dict[str, Callback]:
  """The callbacks of a stage by name, in the order in which they are called."""
  made = {name: make(setup._replace(name=name)) for name, make in specs.items()}
  return dict(sorted(made.items(), key=lambda item: item[1].reads_metrics))


def initial_scalars(stage: Stage, run: Run) -> dict[str, float]:
  """The controlled scalars of a stage's first step."""
  measure = (
    (lambda params, max_new_tokens: {}) if stage.prompts.held_out else None
  )
  setup = Setup(
    '',
    stage.name,
    stage.steps,
    run.mesh,
    jax.random.fold_in(run.key, stage.index),
    measure=measure,
    lora=stage.student.lora is not None,
  )
  return controlled_scalars(make_callbacks(stage.callbacks, setup))


def controlled_scalars(callbacks: Mapping[str, Callback]) -> dict[str, float]:
  """The controlled scalars of all callbacks, by name."""
  scalars: dict[str, float] = {}
  for callback in callbacks.values():
    scalars |= callback.scalars()
  return scalars
