"""Configs that nobody meant: accepted, or one line that names the setting.

The line comes before any weight is loaded, and is a ValueError or a
FileNotFoundError, never what a value happens to break somewhere below.
"""

import hypothesis
from hypothesis import strategies as st
from ml_collections import ConfigDict
import pytest
import tiny

from jopd.run import build, overrides


def make():
  """A config that uses many of its settings."""
  config = tiny.get_config()
  config.eval.samples = 2
  config.distil.lora = ConfigDict({'rank': 2, 'alpha': 4.0})
  config.distil.teacher_contexts = ConfigDict(
    {'teacher': {'name': 'with_system', 'prompt': 'Be brief.'}}
  )
  config.distil.max_teacher_prompt_tokens = 64
  config.distil.loss.reward = ConfigDict(
    dict(objective='policy_gradient', surrogate='reinforce', coef=0.1)
  )
  return config


def paths(section, before=()):
  """The keys of a config, sections among them."""
  for name, value in section.items():
    yield (*before, name)
    if isinstance(value, ConfigDict):
      yield from paths(value, (*before, name))


PATHS = sorted(set(paths(make())))
# A count of rows that is possible is not refused for being large.
SMALL = [None, True, -1, 0, 1, 2.5, '', 'x', 'teacher', (), ('x',), (1, 2)]
HUGE = [2**31, 2**63, 10**30, -(10**30), 1e300, float('nan'), float('inf')]


def values(path):
  huge = [v for v in HUGE if path[-1] != 'count' or v != 2**31]
  odd = st.sampled_from([{}, {'x': 1}, {'name': 'x'}, {'name': None}, {1: 2}])
  return st.sampled_from(SMALL + huge) | odd.map(ConfigDict)


def put(config, path, value):
  for name in path[:-1]:
    config = config[name]
  with config.unlocked(), config.ignore_type():
    if path[-1] in config:
      del config[path[-1]]
    config[path[-1]] = value


def outcome(config):
  """The message with which a config is refused, None where it is accepted."""
  try:
    build._prepare(config, None)
  except (ValueError, FileNotFoundError) as error:
    return str(error)
  return None


def test_the_config_that_is_changed_is_a_good_one():
  assert outcome(make()) is None


@hypothesis.given(st.data())
def test_a_setting_of_any_value_is_accepted_or_named(data):
  path = data.draw(st.sampled_from(PATHS))
  value = data.draw(values(path))
  config = make()
  put(config, path, value)
  message = outcome(config)
  if message is not None:
    # The setting, its section, or what the setting says.
    names = [*path[-2:], *([value] if isinstance(value, str) and value else [])]
    assert any(name in message for name in names), message


@hypothesis.given(st.data())
def test_several_changes_are_refused_in_one_line_at_most(data):
  config = make()
  for path in data.draw(
    st.lists(st.sampled_from(PATHS), min_size=2, max_size=4)
  ):
    value = data.draw(values(path))
    try:
      if data.draw(st.booleans()):
        put(config, path, value)
      else:
        put(config, (*path[:-1], f'{path[-1]}_x'), value)
    except (TypeError, KeyError, AttributeError):
      continue  # what it stood in is gone
  outcome(config)


@hypothesis.given(st.data())
def test_an_override_is_accepted_or_named(data):
  # Kills: a traceback of the parser of flags.
  path = data.draw(st.sampled_from(PATHS))
  texts = ['', '-1', '1.5', 'nan', 'x', '()', '(1,', "('a',)", '{', 'None']
  value = data.draw(st.sampled_from([*texts, '9' * 30]) | st.text(max_size=5))
  name = f'config.{".".join(path)}{data.draw(st.sampled_from(["", "x", ".x"]))}'
  try:
    overrides.load(tiny.__file__, [f'--{name}={value}'])
  except ValueError as error:
    assert any(part in str(error) for part in path), error


@pytest.mark.parametrize('stages', ['distil', ('none',), (3,), None, ('eval',)])
def test_stages_that_are_none_are_refused(stages):
  config = make()
  put(config, ('stages',), stages)
  assert 'stages' in outcome(config) or 'config.eval' in outcome(config)
