"""From a config file and the command line to a config."""

from collections.abc import Sequence
import importlib.util
import os
import pathlib
import sys
import traceback

from absl import flags
from ml_collections import ConfigDict, config_flags

from jopd.run.config import refuse_unknown


def load(file: str, overrides: Sequence[str] = ()) -> ConfigDict:
  """The config of a file, with overrides from the command line.

  Args:
    file: a Python file with `get_config()`; 'file.py:argument' calls
      `get_config('argument')`.
    overrides: '--config.key.subkey=value' each; the value must have the type
      of the default. A tuple is written as in Python.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is not a config file, or an override names an unknown key or
      has a value of another type.

  Example:
    >>> config = load('configs/quickstart.py', ['--config.distil.steps=3'])
    >>> config.distil.steps
    3
  """
  config = _read(file)
  for override in overrides:
    _check_override(config, override)
  values = flags.FlagValues()
  arguments = ['jopd', *overrides]
  config_flags.DEFINE_config_dict(
    'config', config, flag_values=values, sys_argv=arguments
  )
  try:
    values(arguments)
  except flags.Error as error:
    raise ValueError(str(error)) from error
  return config


def _read(file: str) -> ConfigDict:
  """What `get_config` of a file returns."""
  path, _, argument = file.partition(':')
  if not pathlib.Path(path).is_file():
    raise FileNotFoundError(f'no config file {path}; see configs/')
  if not path.endswith('.py'):
    raise ValueError(f'{path} is not a config file: expected a name ending .py')
  spec = importlib.util.spec_from_file_location('jopd_config', path)
  module = importlib.util.module_from_spec(spec)
  folder = pathlib.Path(path).resolve().parent
  sys.path[:0] = [str(folder), str(folder.parent)]
  try:
    spec.loader.exec_module(module)
    config = module.get_config(*([argument] if argument else []))
  except Exception as error:
    # A config is somebody's Python: it may raise anything.
    raise ValueError(_blame(path, error)) from error
  finally:
    del sys.path[:2]
  if not isinstance(config, ConfigDict):
    raise ValueError(
      f'get_config() of {path} returned {type(config).__name__}, expected the'
      ' ConfigDict that jopd.run.config.base() makes'
    )
  return config


def _blame(path: str, error: Exception) -> str:
  """An error of a config file with the line of that file."""
  if isinstance(error, SyntaxError):
    return f'{path}, line {error.lineno}: {error.msg}'
  calls = traceback.extract_tb(error.__traceback__)
  lines = [c.lineno for c in calls if c.filename == os.path.abspath(path)]
  where = f'{path}, line {lines[-1]}' if lines else path
  return f'{where}: {type(error).__name__}: {error}'


def _check_override(config: ConfigDict, override: str) -> None:
  key = override.removeprefix('--').partition('=')[0]
  at, section = 'config', config
  for name in key.split('.')[1:]:
    if not isinstance(section, ConfigDict):
      raise ValueError(f'{at} is a value and has no {name!r}')
    refuse_unknown([name], section, at)
    at, section = f'{at}.{name}', section[name]
