"""From a config file and the command line to a config."""

import ast
from collections.abc import Sequence
import os
import pathlib
import re
import traceback

from ml_collections import ConfigDict

from jopd.run import config as defaults
from jopd.run.config import (
  SPECS,
  ConfigError,
  check_kind,
  refuse_unknown,
)
from jopd.run.resolve import KINDS, load_file

_FILE_SPEC = re.compile(r'[^\n:]+\.py:[A-Za-z_][\w.]*')
# Sections whose keys are names of a user's own: a key may be new.
_NAMED = (
  *('models', 'teachers', 'loss', 'callbacks', 'eval_tasks', 'teacher_sync'),
  *('teacher_contexts', 'teacher_mixing', 'chat_template_kwargs', 'lora'),
  *('optimizer', 'controllers'),
)
_SPEC_KEYS = {*SPECS, *KINDS, 'also'}


def load(file: str, overrides: Sequence[str] = ()) -> ConfigDict:
  """The config of a file, with overrides from the command line.

  Every setting can be overridden, also one that the file does not spell: a
  setting of a term or of another function, a key of an empty section. Values
  are Python literals; what is none is text. 'file.py:function' in a config is
  relative to the folder of the config file.

  Args:
    file: a Python file with `get_config()`; 'file.py:argument' calls
      `get_config('argument')`.
    overrides: '--config.key.subkey=value' each.

  Raises:
    ConfigError: there is no such file, it makes no config, or an override
      names an unknown key or has a value of another type. Other errors of the
      file keep their type and their traceback.

  Example:
    >>> config = load('configs/quickstart.py', ['--config.distil.steps=3'])
    >>> config.distil.steps
    3
  """
  path, _, argument = file.partition(':')
  config = _read(path, argument)
  for override in overrides:
    key, equals, text = override.partition('=')
    names = key.removeprefix('--').split('.')
    if names[0] != 'config' or len(names) < 2 or not equals:
      raise ConfigError(f'expected --config.KEY=VALUE, got {override!r}')
    _set(config, names[1:], text)
  _make_absolute(config, pathlib.Path(path).resolve().parent)
  return config


def _read(path: str, argument: str) -> ConfigDict:
  """What `get_config` of a file returns."""
  if not pathlib.Path(path).is_file():
    raise ConfigError(f'there is no config file {path}; see configs/')
  if not path.endswith('.py'):
    raise ConfigError(f'{path} is no config file: its name must end in .py')
  try:
    get_config = getattr(load_file(path), 'get_config', None)
    if get_config is None:
      raise ConfigError('it defines no get_config()')
    config = get_config(*([argument] if argument else []))
  except ConfigError as error:
    calls = traceback.extract_tb(error.__traceback__)
    lines = [c.lineno for c in calls if c.filename == os.path.abspath(path)]
    line = f', line {lines[-1]}' if lines else ''
    raise ConfigError(f'{path}{line}: {error}') from error
  if not isinstance(config, ConfigDict):
    raise ConfigError(
      f'get_config() of {path} returned {type(config).__name__}, expected the'
      ' ConfigDict that jopd.run.config.base() makes'
    )
  return config


def _set(config: ConfigDict, names: list[str], text: str) -> None:
  """Sets one setting; `names` is its path below the config."""
  section, where = config, 'config'
  for name in names[:-1]:
    section, where = _enter(section, name, where), f'{where}.{name}'
  name, value = names[-1], _parse(text)
  if _is_closed(section, where):
    refuse_unknown([name], section, where)
    value = _fit(f'{where}.{name}', name, section[name], value, text)
  elif isinstance(section.get(name), ConfigDict) and not (
    isinstance(value, dict) or name in _SPEC_KEYS or _holds_specs(where)
  ):
    raise ConfigError(f'{where}.{name} must be a section, got {text!r}')
  section[name] = value


def _enter(section, name: str, where: str) -> ConfigDict:
  """The section below a key, made where a setting of it may be set."""
  if name not in section:
    # A spec that is not spelled yet, or settings of a function by its default.
    new = where.rpartition('.')[2] in ('models', 'eval_tasks')
    if not new and (name not in _SPEC_KEYS or _is_closed(section, where)):
      refuse_unknown([name], section, where)
    value = defaults.section()
  else:
    value = section[name]
  if not isinstance(value, ConfigDict):
    if name not in _SPEC_KEYS and not _holds_specs(where):
      raise ConfigError(f'{where}.{name} is a value and has no settings')
    value = defaults.section(**({'name': value} if value else {}))
  section[name] = value
  return section[name]


def _holds_specs(where: str) -> bool:
  """Whether the values of a section are specs."""
  last = where.rpartition('.')[2]
  return last in _NAMED and last not in ('lora', 'chat_template_kwargs')


def _is_closed(section: ConfigDict, where: str) -> bool:
  """Whether a section has the keys of its defaults and no others."""
  last = where.rpartition('.')[2]
  if where == 'config' or last in ('eval', 'mesh', 'checkpoint', 'rollout'):
    return True
  return set(section) == set(defaults.stage())


def _fit(where: str, name: str, default, value, text: str):
  """A value of the kind of its default."""
  if name in SPECS or name in _NAMED or isinstance(default, ConfigDict):
    if isinstance(value, dict | str | tuple | list):
      return value
    if name in SPECS:
      return value
    raise ConfigError(f'{where} must be a section, got {text!r}')
  if isinstance(default, bool) and text in ('true', 'false'):
    return text == 'true'
  if isinstance(default, str):
    return text if not isinstance(value, str) else value
  if isinstance(default, tuple):
    if not isinstance(value, tuple | list):
      raise ConfigError(
        f"{where} must be a tuple, such as ('a',), got {text!r}"
      )
    return tuple(value)
  if isinstance(value, dict):  # a schedule
    return value
  check_kind(where, value, type(default))
  return float(value) if isinstance(default, float) else value


def _parse(text: str):
  """A Python literal, or else the text itself."""
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError, MemoryError, RecursionError):
    return text


def _make_absolute(section: ConfigDict, folder: pathlib.Path) -> None:
  """Puts the folder before relative files of specs."""
  for name, value in section.items():
    if isinstance(value, ConfigDict):
      _make_absolute(value, folder)
    elif isinstance(value, str) and _FILE_SPEC.fullmatch(value):
      section[name] = str(folder / value)
