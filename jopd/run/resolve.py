"""From names to functions: the only place for it, but for what optax has.

What is wrong with a name or its arguments is one ValueError that says what was
expected, what came, what to do; it is raised before any weight is loaded.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache, partial
import inspect
import json
import numbers
from types import MappingProxyType

import jax
import jax.numpy as jnp

from jopd import losses
from jopd.data import sources
from jopd.data.examples import Example, Rejected
from jopd.losses import trial
from jopd.run.config import about, check_arguments, did_you_mean, refuse_unknown
from jopd.run.response_sources import ALONE, Rows, rows_on
from jopd.run.schedules import at_step
from jopd.train import filters
from jopd.train.stage import Aggregation as Reduction

_OBJECTIVES = {
  'divergence': losses.divergence,
  'kl_estimate': losses.kl_estimate,
  'policy_gradient': losses.policy_gradient,
  'negative_log_likelihood': losses.negative_log_likelihood,
  'preference': losses.preference,
}
_NONE = MappingProxyType({})
# What every term may have beside the settings of its objective.
_COMMON = dict(coef=1.0, weight='uniform', rows=(), demonstration=False)
_ANYWHERE = dict(rows=())  # for what is asked of a term whatever its rows
# Whether these teach anything, those decide who write the responses.
OF_OTHERS = ('negative_log_likelihood', 'preference')
# Setting, of a term or of a function -> the room whose function it names.
_ROOMS = {
  'divergence': losses.divergences,
  'support': losses.supports,
  'target': losses.targets,
  'estimator': losses.kl_estimators,
  'surrogate': losses.surrogates,
  'old_policy': losses.old_policies,
  'advantage': losses.advantages,
  'weight': losses.weights,
  'also': filters,
}
_rows = lambda mask: jnp.sum(jnp.any(mask, axis=1))
# Reduction -> the denominator that it takes.
_COUNTS = dict(token_mean=jnp.sum, sequence_mean=_rows, fixed_length=_rows)


def resolve(room, spec) -> Callable:
  """The function of a room that a spec names, its settings bound.

  The function's keyword-only arguments are settings; the others are what the
  library calls it with. A setting that is called as a term calls a room's
  function, such as the `credit` of `discounted_return`, names one in its turn.

  Args:
    room: a module; its public functions can be named.
    spec: a name, or a mapping with 'name' and keyword arguments.

  Raises:
    ValueError: the room has no such function, or it no such argument, or one
      that it needs is missing.
  """
  function, arguments, where = _find(room, spec)
  parameters = inspect.signature(function).parameters.values()
  settings = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
  check_arguments(arguments, settings, where)
  return partial(function, **_resolved(arguments)) if arguments else function


def _resolved(settings: Mapping) -> dict:
  """Settings in which names of functions have become functions."""
  return {
    name: resolve(_ROOMS[name], value) if name in _ROOMS else value
    for name, value in settings.items()
  }


def make_examples(spec) -> Sequence[Example | Rejected]:
  """The rows of a source, all of whose arguments are settings.

  Raises:
    ValueError: as for `resolve`, or the source refuses its data.
  """
  function, arguments, where = _find(sources, spec)
  check_arguments(arguments, inspect.signature(function).parameters, where)
  parts = {}
  for name, part in arguments.get('parts', {}).items():
    with about(f'parts.{name}'):
      parts[name] = make_examples(part)
  return function(**arguments | ({'parts': parts} if parts else {}))


def _find(room, spec) -> tuple[Callable, dict, str]:
  """A function of a room, the arguments of a spec, what to call the two."""
  if not isinstance(spec, str) and not hasattr(spec, 'keys'):
    raise ValueError(f'expected a name or dict(name=...), got {spec!r}')
  arguments = {'name': spec} if isinstance(spec, str) else dict(spec)
  name = arguments.pop('name', '')
  where = room.__name__
  known = {
    n: f
    for n, f in vars(room).items()
    if inspect.isfunction(f) and f.__module__.startswith(where) and n[0] != '_'
  }
  if not isinstance(name, str) or name not in known:
    raise ValueError(f'{where} has no {name!r}{did_you_mean(name, known)}')
  return known[name], arguments, f'{where}.{name}'


def make_term(
  spec: Mapping, step, controlled: Mapping = _NONE, rows: Rows = ALONE
) -> losses.Term:
  """One term of the loss from its settings.

  A term is dict(objective=..., coef=1.0, weight='uniform', ...); what else it
  has depends on the objective: `divergence` has divergence, support and target,
  `kl_estimate` penalty and target, `policy_gradient` surrogate, credit, anchor and
  target. Each names a function of the room of that name in `losses`, alone or
  as dict(name=..., argument=...). Any number but those that decide shapes may
  be a schedule, see `at_step`. With `on`, one or several names of sources or
  domains, it learns from their rows alone. demonstration=True lets the
  objective move a student that equals its target, which `make_terms` refuses
  otherwise.
  """
  settings = at_step(_COMMON | dict(spec), step, controlled)
  coef = settings['coef']
  if not isinstance(coef, numbers.Real | jax.Array):
    raise ValueError(f'expected a number or dict(schedule=...), got {coef!r}')
  objective = _make_objective(settings)
  weight = resolve(losses.weights, settings['weight'])
  return losses.Term(objective, weight, coef, rows_on(settings, rows))


def _make_objective(settings: Mapping) -> Callable:
  """The objective of a term."""
  name = settings.get('objective', '')
  if name not in _OBJECTIVES:
    raise ValueError(
      f'a term has no objective {name!r}{did_you_mean(name, _OBJECTIVES)}'
    )
  make, where = _OBJECTIVES[name], f'a {name} term'
  parameters = inspect.signature(make).parameters
  refuse_unknown(settings, {'objective', *_COMMON, *parameters}, where)
  own = {n: v for n, v in settings.items() if n in parameters}
  check_arguments(own, parameters, where)
  return make(**_resolved(own))


def make_terms(
  specs: Mapping,
  roles: Collection[str],
  vocab_size: int,
  *,
  rows: Rows = ALONE,
  updates: int = 1,
  micro_batches: int = 1,
  last: int = 0,
  controlled: Mapping[str, float] = _NONE,
  others: str = '',
) -> tuple[Callable, Callable]:
  """From scalars to terms, and from (update, controlled) to scalars.

  The scalars of the terms may be traced.

  The loss is traced here on shapes alone, for what only its own code refuses
  and would otherwise wait for the first step: a k beyond the vocabulary, a tail
  that is none. Then its objective is enumerated on a small vocabulary, for what
  no step would ever refuse: that it teaches nothing, or the wrong thing; see
  `losses.check_objective`. Schedules are tried at both of their ends, and
  enumerated where they begin.

  Args:
    specs: name -> term, see `make_term`.
    roles: names of the teachers.
    vocab_size: V.
    rows: who may write the responses to a prompt, and the domains of prompts.
    updates: of the student, on the responses to a batch of prompts.
    micro_batches: parts that a batch is cut into.
    last: the last step.
    controlled: name -> first value of a scalar that follows what is measured.
    others: why responses may not be of the student as it is; empty: they are.

  Raises:
    ValueError: a term is wrong; its name comes first.
  """
  small = min(losses.gradient_check.VOCAB, vocab_size)
  for name, spec in specs.items():
    with about(f'terms.{name}'):
      begin = at_step(spec, 0, controlled)
      make = partial(make_term, begin | _ANYWHERE)
      if begin != spec:
        anywhere = {**spec, **_ANYWHERE}
        _check_schedules(anywhere, roles, vocab_size, last, controlled)
      trial.run_on_shapes(make, roles, vocab_size)
      if 'surrogate' in spec:
        _check_anchor(begin, updates, others)
      settings = _COMMON | begin | {'weight': 'uniform'}
      # More than two are as good as two, and probed once with them.
      own = partial(make_term, settings | _ANYWHERE)
      graded = trial.reads_rewards(own, roles, vocab_size)
      group = min(rows.group_size, 2) if graded else None
      if settings['objective'] not in OF_OTHERS:
        settings = settings | _ANYWHERE | {'coef': 1}
        settings = _shrunk(settings, vocab_size, small)
        settings = json.dumps(settings, sort_keys=True)
        _check_once(settings, tuple(sorted(roles)), small, group)
      term = make_term(begin, 0, rows=rows)
      scope = losses.term_reads(term).scope
      if scope == 'group':
        losses.check_groups(
          term, rows.source_indices, roles=roles, vocab_size=small
        )
      if scope == 'batch' and micro_batches > 1:
        raise ValueError(
          'its weight or credit looks at the whole batch, which'
          f' {micro_batches} micro_batches cut up: use 1'
        )
  changing = dict(_changing(specs, ()))
  terms = lambda scalars: {
    n: make_term(_put(spec, scalars, (n,)), 0, rows=rows)
    for n, spec in specs.items()
  }
  scalars = lambda update, controlled=_NONE: {
    name: float(at_step(spec, update, controlled))
    for name, spec in changing.items()
  }
  return terms, scalars


def _changing(settings, path: tuple[str, ...]):
  """The name and the settings of each schedule and controlled number."""
  if isinstance(settings, Mapping):
    if 'schedule' in settings or set(settings) == {'controlled'}:
      yield '/'.join(path), settings
    else:
      for name, value in settings.items():
        yield from _changing(value, (*path, name))


def _put(settings, scalars: Mapping, path: tuple[str, ...]):
  """The settings with scalars where something changes."""
  if (name := '/'.join(path)) in scalars:
    return scalars[name]
  if not isinstance(settings, Mapping):
    return settings
  return {n: _put(x, scalars, (*path, n)) for n, x in settings.items()}


def _check_anchor(spec: Mapping, updates: int, others: str) -> None:
  """Refuses a policy gradient that takes others' tokens for the student's."""
  name = spec.get('old_policy', 'student')
  if updates > 1 and not others:
    others = (
      f'with {updates} updates on the same responses all but the first are of'
      ' an older student'
    )
  if others and not trial.reads_sampler(resolve(losses.old_policies, name)):
    raise ValueError(
      f'old_policy {name!r} does not know the sampler, but {others}: use'
      " old_policy='sampler'"
    )


def _check_schedules(
  spec: Mapping, roles, vocab_size: int, last: int, controlled: Mapping
) -> None:
  """Refuses a schedule that leaves its range, or decides a shape."""
  traced = lambda step: {name: x + 0.0 * step for name, x in controlled.items()}
  try:
    trial.run_on_shapes(
      lambda step: make_term(spec, step, traced(step)), roles, vocab_size
    )
  except TypeError as error:  # of jax, where a number has to be known
    raise ValueError(
      'a schedule stands for a number that decides a shape or a branch, which'
      ' cannot change while a program runs: give that one as a number'
    ) from error
  trial.run_on_shapes(
    partial(make_term, at_step(spec, last, controlled)), roles, vocab_size
  )


def reads_rewards(
  specs: Mapping, roles: Collection[str], vocab_size: int
) -> bool:
  """Whether terms cannot do without rewards; found by leaving them out.

  Args:
    specs: name -> term, which `make_terms` has accepted.
    roles: names of the teachers.
    vocab_size: V.
  """
  makes = (partial(make_term, {**x, **_ANYWHERE}) for x in specs.values())
  return any(trial.reads_rewards(make, roles, vocab_size) for make in makes)


def _shrunk(value, vocab_size: int, small: int):
  """Settings in which no whole number counts more tokens than there are."""
  if isinstance(value, Mapping):
    return {n: _shrunk(v, vocab_size, small) for n, v in value.items()}
  if type(value) is not int:
    return value
  # All stays all; a part stays a part that leaves something out.
  return small if value >= vocab_size else min(value, small // 2)


@cache  # of a process: its stages, and its tests, repeat few terms
def _check_once(
  settings: str,
  roles: tuple[str, ...],
  vocab_size: int,
  group_size: int | None,
) -> None:
  """Refuses a term that teaches nothing or the wrong thing."""
  settings = json.loads(settings)
  losses.check_objective(
    _make_objective(settings),
    kind=settings['objective'],
    target=resolve(losses.targets, settings.get('target', 'teacher')),
    roles=roles,
    vocab_size=vocab_size,
    group_size=group_size,
    demonstration=settings['demonstration'],
  )


def make_reduction(spec) -> Reduction:
  """How tokens become one number, from a name or dict(name=..., length=...).

  Raises:
    ValueError: as for `resolve`, or the reduction refuses its settings.
  """
  with about('loss_aggregation'):
    reduce = resolve(losses.aggregation, spec)
    name = spec if isinstance(spec, str) else spec['name']
    jax.eval_shape(reduce, jnp.zeros((1, 1)), jnp.ones((1, 1), bool), 1)
  return Reduction(reduce, _COUNTS[name])
