"""What of a stage changes while it runs: schedules, pace, looks ahead.

And the prompts that are kept apart, to be measured for that.
"""

from collections.abc import Callable
import math
import numbers

import jax

from jopd import sharding
from jopd.data import batching
from jopd.evaluate.accuracy import make_measure
from jopd.rollout import sampling
from jopd.run.checks import check_answer
from jopd.run.config import error_context
from jopd.run.resolve import resolve
from jopd.run.response_sources import DATASET, STUDENT
from jopd.run.schedules import at_step
from jopd.train import controllers
from jopd.train.stage import Run


def make_changes(settings, run: Run, sources) -> tuple[dict, dict, str]:
  """What changes while a stage runs.

  Args:
    settings: of the stage.
    run: whose limits hold.
    sources: who writes responses.

  Returns:
    Fields of a `Stage`; the first values of what is controlled, by name; why
    responses may not be those of the student that learns, empty if they are.

  Raises:
    ValueError: a rule is not there, or cannot be meant.
  """
  pace = _make_pace(settings)
  controlled = controllers.Pace(pace).values()
  rule, old = _make_replay(settings, sources, controlled)
  sampling = _make_sampling(settings, run, controlled)
  others = 'with replay responses are of an older student' if old else ''
  if STUDENT in sources:
    others = others or _other_temperature(settings, sampling, controlled)
  changes = dict(
    controllers=pace,
    sampling=sampling,
    replay=rule,
    weight_extrapolation=_make_foresight(settings),
  )
  return changes, controlled, others


def _make_pace(settings) -> dict[str, Callable]:
  """Name -> the function that a scalar follows."""
  pace = {}
  for name, spec in settings.controllers.items():
    with error_context(f'controllers.{name}'):
      pace[name] = resolve('controller', spec)
      first = pace[name]({}, {})
      pace[name](first, {})
  return pace


def _make_sampling(settings, run: Run, controlled) -> Callable:
  """(step, controlled scalars) -> settings of the sampler, plain numbers."""
  spec = settings.rollout.to_dict()
  most = run.max_new_tokens

  def at(step: int, controlled) -> dict:
    now = dict(at_step(spec, step, controlled))
    for name, value in now.items():
      if not isinstance(value, numbers.Real):
        raise ValueError(
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
      raise ValueError(f'limit must be at least 0, got {limit}; 0 is no limit')
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


def _make_replay(settings, sources, controlled) -> tuple[Callable, bool]:
  """(step, controlled scalars) -> the rule of replay; and if it learns old ones."""
  spec = settings.replay.to_dict()
  at = lambda step, controlled: resolve(
    'replay', at_step(spec, step, controlled)
  )
  old, made = False, 0
  with error_context('replay'):
    at(settings.steps - 1, controlled)(0, 0, (0.0, 0.0))
    for step in range(3):  # with the least luck, and so the fewest new ones
      turn = at(step, controlled)(step, made, (math.nextafter(1.0, 0.0), 0.0))
      old |= turn.learn < turn.made - 1 or turn.made == made
      made = turn.made
    if old and DATASET in sources:
      raise ValueError(
        'responses of a dataset have no age: nobody sampled them, so there are'
        " no log-probs of a sampler to weigh them by; use source='student'"
      )
  return at, old


def _make_foresight(settings) -> Callable | None:
  """The rule by which the stage looks ahead."""
  if not settings.weight_extrapolation:
    return None
  with error_context('weight_extrapolation'):
    rule = resolve('weight_extrapolation', settings.weight_extrapolation)
    rule(1, [])
    if settings.lora:
      raise ValueError(
        'it goes on along the way of all parameters, and only adapters are'
        ' trained: empty one of lora and foresight'
      )
    if not settings.held_out:
      raise ValueError('it needs prompts to score by: say in held_out how many')
  return rule


def make_held_out(config, index: int, run: Run, encoding, examples):
  """(params, limit) -> what the prompts show that are kept apart."""
  if not examples:
    return None
  settings = config[config.stages[index]]
  for example in examples:
    with error_context(f'example {example.id}'):
      check_answer(example, run.reward, required=True)
  sharding.check_batch(run.mesh, len(examples))
  generate = run.make_generate(
    run.models[settings.student], f'{config.stages[index]}: held-out rollout'
  )
  measure = make_measure(
    generate,
    run.tokenizer,
    run.reward,
    batching.encode_batch(
      examples, max_prompt_tokens=config.max_prompt_tokens, **encoding
    ),
  )
  # No step has that number.
  key = jax.random.fold_in(jax.random.fold_in(run.key, index), 2**32 - 2)
  return lambda params, limit: measure(params, key, limit)
