"""Numbers that follow the step, or what is measured, in settings."""

from collections.abc import Mapping
from types import MappingProxyType

from jopd.run.config import did_you_mean
from jopd.run.resolve import schedule


def at_step(settings, step, controlled: Mapping = MappingProxyType({})):
  """Settings in which what changes has become its value at a step.

  A schedule is dict(schedule='linear_schedule', init_value=..., ...): the name
  of an optax schedule and its arguments. dict(controlled='name') is the scalar of
  that name. Both may stand for any number of a term, however deep. The step may
  be traced; from a Python int come Python floats.

  Args:
    settings: plain data.
    step: of the schedules.
    controlled: name -> scalar, which may be traced: of `train/controllers.py`.

  Raises:
    ValueError: optax has no such schedule, or it no such argument; no scalar of
      that name is controlled.

  Example:
    >>> ramp = dict(schedule='linear_schedule', init_value=0.0, end_value=1.0)
    >>> ramp |= dict(transition_steps=4)
    >>> credit = dict(name='discounted_return', gamma=ramp)
    >>> at_step(
    ...   dict(credit=credit, coef=dict(controlled='pull')), 1, dict(pull=2.0)
    ... )
    {'credit': {'name': 'discounted_return', 'gamma': 0.25}, 'coef': 2.0}
  """
  if not isinstance(settings, Mapping):
    return settings
  if 'schedule' in settings:
    value = schedule(settings)(step)
    return float(value) if isinstance(step, int) else value
  if set(settings) == {'controlled'}:
    name = settings['controlled']
    if name not in controlled:
      raise ValueError(f'pace has no {name!r}{did_you_mean(name, controlled)}')
    return controlled[name]
  return {
    name: at_step(value, step, controlled) for name, value in settings.items()
  }
