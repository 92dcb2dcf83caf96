"""Controllers: callbacks whose value follows what is measured.

`dict(controlled=NAME)`, with the name of the callback, may stand wherever a
schedule may: in settings of the sampler and of the loss.
"""

from collections.abc import Callable, Mapping, Sequence
import math

from jopd.train.callbacks.base import Callback, Setup, StepContext


class Controller(Callback):
  """A scalar that changes after each step.

  Args:
    name: of the scalar.
    value: of the first step.
    advance: (value, metrics of a step, of those that are finite) -> the next
      value.
  """

  reads_metrics = True

  def __init__(
    self,
    name: str,
    value: float,
    advance: Callable[[float, Mapping[str, float]], float],
  ):
    self._name, self._value, self._advance = name, value, advance

  def scalars(self) -> dict[str, float]:
    return {self._name: self._value}

  def after_step(self, context: StepContext) -> None:
    metrics = context.metrics.items()
    finite = {name: x for name, x in metrics if math.isfinite(x)}
    self._value = self._advance(self._value, finite)

  def get_state(self) -> dict:
    return {'value': self._value}

  def restore(self, state: dict, arrays: dict) -> None:
    self._value = state['value']


def staged_curriculum(
  setup: Setup,
  *,
  rungs: Sequence,
  threshold: float,
  metric: str = 'held_out/entropy',
) -> Callback:
  """The next rung each time that a metric is large enough, at most the last.

  With the student's entropy as the metric, the gate of a curriculum of
  lengths: responses become longer only while the student has not collapsed. A
  rung lasts until the metric is measured again; a gate that stays shut is tried
  again each time.

  Args:
    setup: of the stage.
    rungs: the values in their order.
    threshold: the smallest metric that lets it climb.
    metric: its name. Held-out metrics need the callback `measure_held_out`.

  Raises: ValueError when there is no rung.
  References: Decoupling KL and Trajectories, arXiv 2605.16826, the curriculum
    of lengths that entropy gates, from notes on it; its lengths and threshold
    are not known to us, nor whether a gate that was shut may open again.
  """
  if not rungs:
    raise ValueError('rungs is empty: name the values to climb, as (128, 256)')

  values = [float(value) for value in rungs]

  def advance(value, metrics):
    here = values.index(value)
    up = here + 1 < len(values) and metrics.get(metric, -math.inf) >= threshold
    return values[here + up]

  return Controller(setup.name, values[0], advance)


def adaptive_kl(
  setup: Setup,
  *,
  init_value: float,
  metric: str,
  target: float,
  gain: float = 0.1,
  clip: float = 0.2,
) -> Callback:
  """A factor on what should shrink a metric, until the metric is at its target.

  value <- value * (1 + gain * clip(metric / target - 1, -clip, clip)). For the
  coefficient of a penalty, such as the KL to a reference.

  Args:
    setup: of the stage.
    init_value: of the first step.
    metric: its name; >= 0. A step without it leaves the value.
    target: > 0.
    gain: how fast the value moves; at most gain * clip a step.
    clip: the largest error that counts, as a share of the target.

  Raises: ValueError when the target is not above 0.
  References: Ziegler et al., Fine-Tuning Language Models from Human
    Preferences, arXiv 1909.08593, section 2.2, with K_beta as gain.
  """
  if not target > 0:
    raise ValueError(f'target must be above 0, got {target}')

  def advance(value, metrics):
    error = metrics.get(metric, target) / target - 1
    return value * (1 + gain * min(clip, max(-clip, error)))

  return Controller(setup.name, float(init_value), advance)
