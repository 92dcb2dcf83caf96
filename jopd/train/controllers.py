"""Scalars of a stage that follow what is measured: (state, row) -> state.

Host functions, called once a step. A row is what the step's log says, and where
the held-out prompts were measured after it, that as 'held_out/<name>'. A state
is plain numbers by name, kept in the checkpoint; its 'value' is the scalar from
the next step on. An empty state asks for the first one.
"""

from collections.abc import Callable, Mapping, Sequence
import math

State = dict


def staged_curriculum(
  state: State,
  row: Mapping,
  *,
  rungs: Sequence,
  least: float,
  of: str = 'held_out/entropy',
) -> State:
  """The next rung each time that a measure is large enough, at most the last.

  With the student's entropy as the measure, the gate of a curriculum of
  lengths: responses become longer only while the student has not collapsed. A
  rung lasts until the measure is taken again; a gate that stays shut is tried
  again each time.

  Args:
    state: the value, which is one of the rungs.
    row: of the step.
    rungs: the values in their order.
    least: the smallest measure that lets it climb.
    of: name of the measure in the row.

  Returns:
    The next state.

  Raises: ValueError when there is no rung.
  References: Decoupling KL and Trajectories, arXiv 2605.16826, the curriculum
    of lengths that entropy gates, from notes on it; its lengths and threshold
    are not known to us, nor whether a gate that was shut may open again.

  Example: enough, then not.
    >>> climb = lambda state, **row: staged_curriculum(
    ...   state, row, rungs=(4, 8, 16), least=0.5, of='entropy'
    ... )
    >>> state = climb(climb({}), entropy=0.6)
    >>> state, climb(state, entropy=0.4)
    ({'value': 8}, {'value': 8})
  """
  if not rungs:
    raise ValueError('rungs is empty: name the values to climb, as (128, 256)')
  if not state:
    return {'value': rungs[0]}
  # A value that is restored has been through a file.
  here = list(rungs).index(state['value'])
  up = here + 1 < len(rungs) and row.get(of, -math.inf) >= least
  return {'value': rungs[here + up]}


def adaptive_kl(
  state: State,
  row: Mapping,
  *,
  start: float,
  of: str,
  aim: float,
  gain: float = 0.1,
  most: float = 0.2,
) -> State:
  """A factor on what should shrink a measure, until the measure is at its aim.

  value <- value * (1 + gain * clip(measure / aim - 1, -most, most)). For the
  coefficient of a penalty, such as the KL to a reference.

  Args:
    state: the value.
    row: of the step.
    start: the first value.
    of: name of the measure, >= 0, in the row.
    aim: > 0, what it should be.
    gain: how fast the value moves; at most gain * most a step.
    most: the largest error that counts, as a share of the aim.

  Returns:
    The next state; the same where the row has no such measure.

  Raises: ValueError when the aim is not above 0.
  References: Ziegler et al., Fine-Tuning Language Models from Human
    Preferences, arXiv 1909.08593, section 2.2, with K_beta as gain.

  Example: a measure of three times its aim counts as 20 % too much.
    >>> state = adaptive_kl({}, {}, start=0.5, of='kl', aim=0.1)
    >>> adaptive_kl(state, {'kl': 0.3}, start=0.5, of='kl', aim=0.1)
    {'value': 0.51}
  """
  if not aim > 0:
    raise ValueError(f'aim must be above 0, got {aim}')
  if not state:
    return {'value': start}
  error = row.get(of, aim) / aim - 1
  clipped = min(most, max(-most, error))
  return {'value': state['value'] * (1 + gain * clipped)}


class Pace:
  """The controlled scalars of a stage as they are now.

  Args:
    controllers: name -> function of this room, its settings bound.
  """

  def __init__(self, controllers: Mapping[str, Callable]):
    self._controllers = controllers
    self._states = {name: rule({}, {}) for name, rule in controllers.items()}

  def values(self) -> dict[str, float]:
    """Name -> the scalar of the step to come."""
    return {name: float(s['value']) for name, s in self._states.items()}

  def advance(self, row: Mapping) -> None:
    """Takes note of what a step measured; not of what is not finite."""
    row = {name: x for name, x in row.items() if math.isfinite(x)}
    self._states = {
      name: rule(self._states[name], row)
      for name, rule in self._controllers.items()
    }

  def get_state(self) -> dict:
    """What `set_state` needs to go on from here; plain JSON, tiny."""
    return self._states

  def set_state(self, state: dict) -> None:
    """Goes on after the step that `get_state` followed."""
    self._states = state
