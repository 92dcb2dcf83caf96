"""From specs to functions: the one place where a name becomes a function.

A spec is a function, the name of one of jopd's, 'package.module:function' or
'path/to/file.py:function'; or dict(name=<one of these>, **settings). Settings
are the keyword-only arguments of the function. A setting that is called like a
kind of function, such as `advantage`, is a spec in its turn. A number may be
dict(schedule='linear_schedule', ...) or dict(controlled='name').
"""

from collections.abc import Callable, Mapping
import functools
import hashlib
import importlib
import importlib.util
import inspect
import pathlib
import re
import sys
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple

import optax

from jopd import losses, rewards
from jopd.data import contexts, sources
from jopd.rollout import teacher_mixing
from jopd.run.config import ConfigError, check_arguments, did_you_mean
from jopd.train import (
  callbacks,
  filters,
  loggers,
  teacher_sync,
)

# 'package.module:function' or 'path/file.py:function'
_FUNCTION_NAME = re.compile(r'([A-Za-z_][\w.]*|[^\n:]+\.py):[A-Za-z_][\w.]*')
_NO_SCALARS = MappingProxyType({})


class Kind(NamedTuple):
  """A kind of function that a config names.

  Attributes:
    module: whose public functions can be named without a module.
    parameters: what a function of this kind is called with.
  """

  module: ModuleType | None
  parameters: tuple[str, ...]


_PAIR = ('student_logp', 'target_logp')
KINDS = {
  'objective': Kind(losses.objectives, ('batch',)),
  'divergence': Kind(losses.divergences, _PAIR),
  'support': Kind(losses.supports, _PAIR),
  'target': Kind(losses.targets, ('logps',)),
  'estimator': Kind(losses.kl_estimators, _PAIR),
  'surrogate': Kind(
    losses.surrogates, ('student_logp', 'old_logp', 'advantage')
  ),
  'advantage': Kind(losses.advantages, ('stats',)),
  'old_policy': Kind(losses.old_policies, ('stats',)),
  'weight': Kind(losses.weights, ('stats',)),
  'loss_aggregation': Kind(losses.aggregation, ('per_token', 'mask', 'count')),
  'source': Kind(sources, ()),
  'context': Kind(contexts, ('example',)),
  'reward': Kind(rewards, ('response', 'example')),
  'filter': Kind(filters, ('rewards', 'lengths', 'end_reasons')),
  'teacher_sync': Kind(teacher_sync, ('teacher', 'student', 'step')),
  'teacher_mixing': Kind(teacher_mixing, ('student_logp', 'teacher_logp')),
  'callback': Kind(callbacks, ('setup',)),
  'model': Kind(None, ()),
  'optimizer': Kind(None, ()),
  'logger': Kind(loggers, ('folder', 'log')),
}
_OF_LOSSES = (
  *('objective', 'divergence', 'support', 'target', 'estimator', 'surrogate'),
  *('advantage', 'old_policy', 'weight'),
)
# Kind of a function -> name of a setting that is a spec -> its kind.
_NESTED = {kind: {name: name for name in _OF_LOSSES} for kind in _OF_LOSSES}
_NESTED |= {'filter': {'also': 'filter'}}


class Scalar(NamedTuple):
  """A number of a setting that changes during a run.

  Attributes:
    name: where it stands, such as 'match.advantage.gamma'.
    value: (step, controlled) -> float.
  """

  name: str
  value: Callable[[Any, Mapping[str, float]], float]


class Resolved(NamedTuple):
  """A function and its settings, in which scalars are still to be put.

  Attributes:
    function: as named.
    settings: name -> value, `Scalar`, `Resolved`, or a mapping of these.
  """

  function: Callable
  settings: Mapping[str, Any]

  def bind(self, scalars: Mapping[str, Any] = _NO_SCALARS) -> Callable:
    """The function with its settings, scalars taken by their names."""
    settings = _bound(self.settings, scalars)
    if not settings:
      return self.function
    return functools.partial(self.function, **settings)

  def scalars(self) -> list[Scalar]:
    """All that change."""
    return list(_scalars(self.settings))

  def functions(self) -> list[Callable]:
    """The function, and those among its settings."""
    return [self.function, *_functions(self.settings)]


def resolve(kind: str, spec, **options) -> Callable:
  """The function that a spec names, its settings bound.

  Args:
    kind: one of `KINDS`.
    spec: see the module. Its settings may not change during a run.
    options: of `read_spec`.

  Raises:
    ConfigError: there is no such function, or its settings or its signature do
      not fit.
  """
  resolved = read_spec(kind, spec, **options)
  if changing := resolved.scalars():
    raise ConfigError(f'{changing[0].name} must be a number, not a schedule')
  return resolved.bind()


def read_spec(
  kind: str, spec, *, place: str = '', parameters: tuple[str, ...] | None = None
) -> Resolved:
  """What a spec names, its settings checked.

  Args:
    kind: one of `KINDS`.
    spec: see the module.
    place: of the spec; names of scalars begin with it.
    parameters: what the function will be called with, if not what its kind is.

  Raises:
    ConfigError: as for `resolve`.
  """
  function, settings = find(kind, spec)
  if parameters is None:
    parameters = KINDS[kind].parameters
  name = qualified_name(function)
  if unfit := parameters and _unfit(function, parameters):
    raise ConfigError(
      f'{name}{inspect.signature(function)} cannot be a {kind}: {unfit};'
      f' expected a function ({", ".join(parameters)}, *, settings ...)'
    )
  known = {
    n: p
    for n, p in inspect.signature(function).parameters.items()
    if not parameters or p.kind in (p.KEYWORD_ONLY, p.VAR_KEYWORD)
  }
  nested = _NESTED.get(kind, {})
  values = {
    n: _read_value(nested.get(n), x, f'{place}.{n}'.strip('.'))
    for n, x in settings.items()
  }
  check_arguments(values, known, name)
  return Resolved(function, values)


def find(kind: str, spec) -> tuple[Callable, dict]:
  """The function that a spec names, and its settings as they are."""
  settings = {}
  if hasattr(spec, 'items'):
    settings = dict(spec)
    spec = settings.pop('name', None)
  if callable(spec):
    return spec, settings
  if not isinstance(spec, str) or not spec:
    raise ConfigError(
      f'a {kind} must be a function, a name or dict(name=...), got {spec!r}'
    )
  if ':' in spec:
    return import_function(spec), settings
  module = KINDS[kind].module
  known = public_functions(module) if module else {}
  if spec not in known:
    raise ConfigError(
      f'jopd has no {kind} {spec!r}{did_you_mean(spec, known)}; a function of'
      f" your own is named 'package.module:{spec}' or 'file.py:{spec}'"
    )
  return known[spec], settings


def public_functions(module: ModuleType) -> dict[str, Callable]:
  """The functions that a module, or a package, offers, by name."""
  return {
    name: function
    for name, function in vars(module).items()
    if inspect.isfunction(function)
    and function.__module__.startswith(module.__name__)
    and not name.startswith('_')
  }


def import_function(name: str) -> Callable:
  """The function of 'package.module:function' or 'path/file.py:function'.

  What goes wrong while the file itself is executed keeps its traceback.

  Raises:
    ConfigError: there is no such module, file or function.
  """
  where, _, attribute = name.rpartition(':')
  if where.endswith('.py'):
    if not pathlib.Path(where).is_file():
      raise ConfigError(f'{name}: there is no file {where}')
    module = load_file(where)
  else:
    try:
      module = importlib.import_module(where)
    except ModuleNotFoundError as error:
      if error.name and (where + '.').startswith(error.name + '.'):
        raise ConfigError(
          f'{name}: there is no module {error.name!r}'
        ) from None
      raise
  function = module
  for part in attribute.split('.'):
    function = getattr(function, part, None)
  if not callable(function):
    known = public_functions(module)
    raise ConfigError(
      f'{where} has no function {attribute!r}{did_you_mean(attribute, known)}'
    )
  return function


def load_file(path: str) -> ModuleType:
  """The module of a Python file, executed once for each content it has.

  Its folder and the folder above are searched for its imports.
  """
  file = pathlib.Path(path).resolve()
  content = f'{file}\n'.encode() + file.read_bytes()
  name = f'jopd_file_{hashlib.sha256(content).hexdigest()[:12]}'
  if name in sys.modules:
    return sys.modules[name]
  spec = importlib.util.spec_from_file_location(name, file)
  module = importlib.util.module_from_spec(spec)
  sys.modules[name] = module
  folders = [str(file.parent), str(file.parent.parent)]
  sys.path[:0] = folders
  try:
    spec.loader.exec_module(module)
  except BaseException:
    del sys.modules[name]
    raise
  finally:
    for folder in folders:
      sys.path.remove(folder)
  return module


def qualified_name(function: Callable) -> str:
  """'module:function', or 'path/file.py:function'; how a run records it."""
  while isinstance(function, functools.partial):
    function = function.func
  name = getattr(function, '__qualname__', type(function).__qualname__)
  where = getattr(function, '__module__', None) or '?'
  module = sys.modules.get(where)
  if where.startswith('jopd_file_') or where == '__main__':
    where = getattr(module, '__file__', None) or where
  return f'{where}:{name}'


def plain(value):
  """A value of a config as JSON has it; functions by their qualified names."""
  if hasattr(value, 'items'):
    return {str(name): plain(x) for name, x in value.items()}
  if isinstance(value, list | tuple):
    return [plain(x) for x in value]
  return qualified_name(value) if callable(value) else value


def is_own(function: Callable) -> bool:
  """Whether a function is not one of jopd's."""
  while isinstance(function, functools.partial):
    function = function.func
  module = getattr(function, '__module__', None) or ''
  return module.partition('.')[0] != 'jopd'


def own_functions(config) -> list[Callable]:
  """The functions of a user's own that a config names, anywhere in it."""
  functions = []
  values = config.values() if hasattr(config, 'values') else config
  for value in values:
    if hasattr(value, 'items') or isinstance(value, list | tuple):
      functions += own_functions(value)
    elif isinstance(value, str) and _FUNCTION_NAME.fullmatch(value):
      functions.append(import_function(value))
    elif callable(value):
      functions.append(value)
  return [f for f in functions if is_own(f)]


def source_hash(function: Callable) -> str:
  """SHA-256 of the source of a function; '' where there is none to read."""
  while isinstance(function, functools.partial):
    function = function.func
  try:
    source = inspect.getsource(function)
  except (OSError, TypeError):
    return ''
  return hashlib.sha256(source.encode()).hexdigest()


def schedule(spec: Mapping) -> Callable:
  """The schedule of optax that dict(schedule='name', ...) names.

  Raises:
    ConfigError: optax has no such schedule, or it no such argument.
  """
  settings = dict(spec)
  name = settings.pop('schedule')
  known = [n for n in vars(optax) if n.endswith('_schedule')]
  if name not in known:
    raise ConfigError(
      f'optax has no schedule {name!r}{did_you_mean(name, known)}'
    )
  function = getattr(optax, name)
  parameters = inspect.signature(function).parameters
  check_arguments(settings, parameters, f'optax.{name}')
  if 'boundaries_and_scales' in settings:
    # Keys of a config, and of its file, are text.
    scales = settings['boundaries_and_scales'].items()
    settings['boundaries_and_scales'] = {int(at): x for at, x in scales}
  return function(**settings)


def read_number(value, place: str):
  """A number of a config as it is, or the `Scalar` that it changes as."""
  if not hasattr(value, 'items'):
    return value
  if 'schedule' in value:
    function = schedule(dict(value))
    return Scalar(place, lambda step, controlled: float(function(step)))
  if set(value) == {'controlled'}:
    name = value['controlled']

    def controlled_value(step, controlled):
      if name not in controlled:
        raise ConfigError(
          f'no callback controls {name!r}{did_you_mean(name, controlled)}'
        )
      return controlled[name]

    return Scalar(place, controlled_value)
  return value


def _read_value(kind: str | None, value, place: str):
  """A setting: a spec that is read, a number that changes, or a value."""
  if kind is not None:
    return read_spec(kind, value, place=place)
  value = read_number(value, place)
  if hasattr(value, 'items'):
    return {n: read_number(x, f'{place}.{n}') for n, x in value.items()}
  return value


def _bound(value, scalars: Mapping):
  if isinstance(value, Scalar):
    return scalars[value.name]
  if isinstance(value, Resolved):
    return value.bind(scalars)
  if isinstance(value, Mapping):
    return {name: _bound(x, scalars) for name, x in value.items()}
  return value


def _scalars(value):
  if isinstance(value, Scalar):
    yield value
  elif isinstance(value, Resolved):
    yield from _scalars(value.settings)
  elif isinstance(value, Mapping):
    for inner in value.values():
      yield from _scalars(inner)


def _functions(value):
  if isinstance(value, Resolved):
    yield from value.functions()
  elif isinstance(value, Mapping):
    for inner in value.values():
      yield from _functions(inner)


def _unfit(function: Callable, parameters: tuple[str, ...]) -> str:
  """Why a function cannot be called with so many arguments; '' if it can."""
  positional = [
    p.replace(default=None) if p.kind is p.KEYWORD_ONLY else p
    for p in inspect.signature(function).parameters.values()
  ]
  try:
    inspect.Signature(positional).bind(*parameters)
  except TypeError as error:
    return str(error)
  return ''
