"""From names to functions: the only place where a string becomes one.

What is wrong with a name or its arguments is one ValueError that says what was
expected, what came, what to do; it is raised before any weight is loaded.
"""

from collections.abc import Callable, Mapping
from functools import partial
import inspect

import jax.numpy as jnp
import optax

from jopd import losses
from jopd.config import did_you_mean, refuse_unknown
from jopd.train.step import Reduction

_OBJECTIVES = {
  'matching': losses.matching,
  'sampled': losses.sampled,
  'policy_gradient': losses.policy_gradient,
  'negative_log_likelihood': losses.negative_log_likelihood,
}
# Setting of a term -> the room whose function it names.
_ROOMS = {
  'divergence': losses.divergences,
  'support': losses.supports,
  'target': losses.targets,
  'penalty': losses.penalties,
  'surrogate': losses.surrogates,
  'credit': losses.credits,
  'weight': losses.weights,
}
# With the denominator that each one takes.
_REDUCTIONS = {
  'token_mean': Reduction(losses.token_mean, jnp.sum),
  'sequence_mean': Reduction(
    losses.sequence_mean, lambda mask: jnp.sum(jnp.any(mask, axis=1))
  ),
}
_DECAYS = ('constant', 'linear', 'cosine')


def resolve(room, spec) -> Callable:
  """The function of a room that a spec names, its arguments bound.

  Args:
    room: a module; its public functions can be named.
    spec: a name, or a mapping with 'name' and keyword arguments.

  Raises:
    ValueError: the room has no such function, or it no such argument, or one
      that it needs is missing.
  """
  arguments = {'name': spec} if isinstance(spec, str) else dict(spec)
  name = arguments.pop('name', None)
  where = room.__name__
  known = {
    n: f
    for n, f in vars(room).items()
    if inspect.isfunction(f) and f.__module__.startswith(where) and n[0] != '_'
  }
  if name not in known:
    raise ValueError(f'{where} has no {name!r}{did_you_mean(name, known)}')
  function = known[name]
  parameters = inspect.signature(function).parameters.values()
  keywords = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
  _check_arguments(arguments, keywords, f'{where}.{name}')
  return partial(function, **arguments) if arguments else function


def _check_arguments(arguments, parameters: Mapping, where: str) -> None:
  refuse_unknown(arguments, parameters, where)
  for name, parameter in parameters.items():
    if parameter.default is parameter.empty and name not in arguments:
      raise ValueError(f'{where} needs {name!r}')


def scalar(value, step):
  """A number as it is, or a schedule of optax at a step.

  A schedule is dict(schedule='linear_schedule', init_value=..., ...): the name
  of an optax schedule and its arguments.
  """
  if not isinstance(value, Mapping):
    return value
  arguments = dict(value)
  name = arguments.pop('schedule', None)
  known = {n for n in vars(optax) if n.endswith('_schedule')}
  if name not in known:
    raise ValueError(
      f'optax has no schedule {name!r}{did_you_mean(name, known)}'
    )
  return getattr(optax, name)(**arguments)(step)


def make_term(spec: Mapping, step) -> losses.Term:
  """One term of the loss from its settings.

  A term is dict(objective=..., coef=1.0, weight='uniform', ...); what else it
  has depends on the objective: `matching` has divergence, support and target,
  `sampled` penalty and target, `policy_gradient` surrogate, credit, anchor and
  target. Each names a function of the room of that name in `losses`, alone or
  as dict(name=..., argument=...). The coefficient may be a schedule.
  """
  settings = dict(spec)
  name = settings.pop('objective', None)
  if name not in _OBJECTIVES:
    raise ValueError(
      f'a term has no objective {name!r}{did_you_mean(name, _OBJECTIVES)}'
    )
  objective = _OBJECTIVES[name]
  coef = scalar(settings.pop('coef', 1.0), step)
  weight = resolve(losses.weights, settings.pop('weight', 'uniform'))
  parameters = inspect.signature(objective).parameters
  _check_arguments(settings, parameters, f'a {name} term')
  arguments = {
    n: resolve(_ROOMS[n], v) if n in _ROOMS else v for n, v in settings.items()
  }
  return losses.Term(objective(**arguments), weight, coef)


def make_optimizer(config) -> tuple[optax.GradientTransformation, Callable]:
  """The optimizer of a stage with clipping, and its learning rate by step."""
  if config.decay not in _DECAYS:
    raise ValueError(
      f'decay {config.decay!r} is unknown{did_you_mean(config.decay, _DECAYS)}'
    )
  remaining = max(1, config.steps - config.warmup_steps)
  after = {
    'constant': lambda: optax.constant_schedule(config.learning_rate),
    'linear': lambda: optax.linear_schedule(
      config.learning_rate, 0.0, remaining
    ),
    'cosine': lambda: optax.cosine_decay_schedule(
      config.learning_rate, remaining
    ),
  }[config.decay]()
  # The first step is not wasted on a learning rate of zero.
  warmup = optax.linear_schedule(
    config.learning_rate / (config.warmup_steps + 1),
    config.learning_rate,
    config.warmup_steps,
  )
  rate = optax.join_schedules([warmup, after], [config.warmup_steps])
  arguments = dict(config.optimizer)
  name = arguments.pop('name', None)
  known = {n for n, f in vars(optax).items() if _is_optimizer(f)}
  if name not in known:
    raise ValueError(
      f'optax has no optimizer {name!r}{did_you_mean(name, known)}'
    )
  optimizer = getattr(optax, name)
  refuse_unknown(
    arguments, inspect.signature(optimizer).parameters, f'optax.{name}'
  )
  tx = optimizer(learning_rate=rate, **arguments)
  if config.clip_norm:
    tx = optax.chain(optax.clip_by_global_norm(config.clip_norm), tx)
  return tx, rate


def _is_optimizer(thing) -> bool:
  if not inspect.isfunction(thing):
    return False
  return 'learning_rate' in inspect.signature(thing).parameters


def make_reduction(name: str) -> Reduction:
  """How tokens become one number, by name."""
  if name not in _REDUCTIONS:
    raise ValueError(
      f'reduce is {name!r}, which is unknown{did_you_mean(name, _REDUCTIONS)}'
    )
  return _REDUCTIONS[name]
