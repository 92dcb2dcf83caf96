"""What of a stage changes while it runs: schedules and callbacks."""

from collections.abc import Callable
from functools import partial
import math
import numbers

import jax

from jopd import sharding
from jopd.data import batching
from jopd.rollout import sampling
from jopd.run.checks import check_answer
from jopd.run.config import ConfigError, error_context
from jopd.run.resolve import plain, read_spec
from jopd.run.response_sources import DATASET, STUDENT
from jopd.run.schedules import at_step
from jopd.train.callbacks import Setup
from jopd.train.callbacks.base import controlled_scalars, make_callbacks
from jopd.train.stage import Run


def make_changes(settings, run: Run, index: int, sources):
  """What changes while a stage runs.

  Args:
    settings: of the stage.
    run: whose limits hold.
    index: of the stage.
    sources: that generate responses.

  Returns:
    The settings of the sampler by step; the callbacks; the settings of those
    that keep something in checkpoints; the first values of what is controlled;
    why responses may not be those of the student that learns, '' if they are.

  Raises:
    ConfigError: a callback is not there, or refuses its settings.
  """
  setup = Setup(
    '',
    'stage',
    settings.steps,
    run.mesh,
    jax.random.fold_in(run.key, index),
    measure=(lambda params, max_new_tokens: {}) if settings.held_out else None,
    lora=bool(settings.lora),
  )
  specs, made, kept = {}, {}, {}
  for name, spec in settings.callbacks.items():
    with error_context(f'callbacks.{name}'):
      specs[name] = _make_callback(spec)
      made |= make_callbacks({name: specs[name]}, setup)
      if made[name].off_policy and DATASET in sources:
        raise ConfigError(
          'responses of a dataset have no staleness, for they have no'
          " log-probs of a sampler: use response_source='student'"
        )
      if made[name].get_state():
        kept[name] = plain(spec)
  controlled = controlled_scalars(made)
  sampling = _make_sampling(settings, run, controlled)
  off_policy = ''
  if any(callback.off_policy for callback in made.values()):
    off_policy = 'with replay responses are of an older student'
  elif STUDENT in sources:
    off_policy = _other_temperature(settings, sampling, controlled)
  return sampling, specs, kept, controlled, off_policy


def _make_callback(spec) -> Callable:
  """setup -> callback; a schedule becomes a function of the step."""
  resolved = read_spec('callback', spec)
  return resolved.bind(
    {
      scalar.name: partial(lambda value, step: value(step, {}), scalar.value)
      for scalar in resolved.scalars()
    }
  )


def _make_sampling(settings, run: Run, controlled) -> Callable:
  """(step, controlled scalars) -> settings of the sampler, plain numbers."""
  spec = settings.rollout.to_dict()
  most = run.max_new_tokens

  def at(step: int, controlled) -> dict:
    now = dict(at_step(spec, step, controlled))
    for name, value in now.items():
      if not isinstance(value, numbers.Real):
        raise ConfigError(
          f'{name}: expected a number or dict(schedule=...), got {value!r}'
        )
    limit = round(now.pop('max_new_tokens', 0))
    if spec.get('max_new_tokens', 0):
      limit = min(most, max(1, limit))
    return now | dict(top_k=round(now.get('top_k', 0)), limit=limit or None)

  with error_context('rollout'):
    for step in (0, settings.steps - 1):
      sampling.sampling(
        1, **{n: x for n, x in at(step, controlled).items() if n != 'limit'}
      )
    if (
      not isinstance(limit := spec.get('max_new_tokens', 0), dict) and limit < 0
    ):
      raise ConfigError(f'limit must be at least 0, got {limit}; 0 is no limit')
  return at


def _other_temperature(settings, sampling: Callable, controlled) -> str:
  """That another distribution samples than learns; empty where it is one."""
  for step in (0, settings.steps - 1):
    sampled = sampling(step, controlled).get('temperature', 1.0)
    if not math.isclose(sampled, settings.loss_temperature, rel_tol=1e-6):
      return (
        f'responses are sampled at temperature {sampled:g} and learnt at'
        f' {settings.loss_temperature:g}, where they are of another distribution'
      )
  return ''


def make_held_out(config, run: Run, encoding, examples):
  """The examples that are held out, encoded; None if there are none."""
  if not examples:
    return None
  for example in examples:
    with error_context(f'example {example.id}'):
      check_answer(example, run.reward, required=True)
  sharding.check_batch(run.mesh, len(examples))
  return batching.encode_batch(
    examples, max_prompt_tokens=config.max_prompt_tokens, **encoding
  )
