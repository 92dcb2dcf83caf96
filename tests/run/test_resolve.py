"""A spec becomes the function that it names, with its settings, or one line."""

import functools
import sys

import jax.numpy as jnp
import pytest

from jopd import losses
from jopd.data.examples import Example
from jopd.run import resolve as resolving
from jopd.run.components import make_context, make_examples
from jopd.run.config import ConfigError
from jopd.run.resolve import read_spec, resolve

STATS = losses.TokenStats(
  student_logp=jnp.zeros((1, 2)),
  target_logp=jnp.array([[1.0, 3.0]]),
  mask=jnp.ones((1, 2), bool),
)


def own_weight(stats, *, factor=2.0):
  """A weight of a user's own."""
  return factor * jnp.ones_like(stats.student_logp)


OWN = 'def graded(response, example, *, bonus=1.0):\n  return bonus\n'


@pytest.fixture
def own_file(tmp_path):
  path = tmp_path / 'own.py'
  path.write_text(OWN)
  return path


# Kills: a function of a user's own that must be added to the package.
@pytest.mark.parametrize(
  'spec, factor',
  [
    (own_weight, 2.0),
    (dict(name=own_weight, factor=3.0), 3.0),
    (functools.partial(own_weight, factor=4.0), 4.0),
    (f'{__name__}:own_weight', 2.0),
    (dict(name=f'{__name__}:own_weight', factor=5.0), 5.0),
    ('uniform', 1.0),
  ],
)
def test_a_spec_is_a_function_a_name_or_a_path(spec, factor):
  assert float(resolve('weight', spec)(STATS)[0, 0]) == factor


def test_a_file_is_a_spec(own_file):
  reward = resolve('reward', dict(name=f'{own_file}:graded', bonus=0.5))
  assert reward(None, None) == 0.5


def test_settings_that_name_functions_are_specs_too():
  # Kills: an argument that stays a name, and the outer function's settings
  # taken by the inner one.
  advantage = resolve(
    'advantage',
    dict(
      name='discounted_return',
      gamma=0.5,
      advantage=dict(name='clip', high=2.0, advantage='log_ratio'),
    ),
  )
  # Log-ratios 1 and 3, clipped to 1 and 2: 1 + 2/2 and 2.
  assert advantage(STATS).tolist() == [[2.0, 2.0]]


def test_every_argument_of_a_source_is_a_setting(tmp_path):
  # Kills: refusing `path`, which is positional, as no setting.
  path = tmp_path / 'rows.jsonl'
  path.write_text('{"question": "1 + 1?", "answer": 2}\n')
  spec = dict(name='jsonl', path=str(path), prompt_field='question')
  [example] = make_examples(spec)
  assert example.messages == [{'role': 'user', 'content': '1 + 1?'}]
  assert example.answer == '2'


def test_a_source_of_a_users_own_returns_rows():
  # Kills: an iterator without a length, and columns that are dropped.
  def rows(*, count):
    yield from (
      {'prompt': str(i), 'answer': i, 'level': i} for i in range(count)
    )

  _, second = make_examples(dict(name=rows, count=2))
  assert second.answer == '1' and second.columns['level'] == 1


def test_a_context_is_bound_to_its_settings():
  context = make_context(dict(name='with_system', prompt='Be.'))
  turns = context(Example('a', [{'role': 'user', 'content': 'x'}]))
  assert turns[0] == {'role': 'system', 'content': 'Be.'}


def wrong_signature(stats, mask):
  return stats


@pytest.mark.parametrize(
  'kind, spec, part',
  [
    ('divergence', 'reverse_lk', "no divergence 'reverse_lk'; did you mean"),
    (
      'weight',
      'unknown',
      "named 'package.module:unknown' or 'file.py:unknown'",
    ),
    ('support', 'topk', "did you mean 'top_k'?"),
    ('support', 'top_k', "top_k needs 'k'"),
    ('support', dict(name='top_k', kk=3), "did you mean 'k'?"),
    ('support', dict(name='top_k', k='3'), 'k must be int'),
    ('divergence', 3, 'must be a function, a name or dict(name=...), got 3'),
    ('weight', dict(low=1.0), 'must be a function, a name or dict(name=...)'),
    (
      'advantage',
      dict(name='clip', advantage='log_ratoi'),
      "no advantage 'log_ratoi'; did you mean 'log_ratio'?",
    ),
    (
      'advantage',
      dict(name='clip', advantage=dict(name='discounted_return')),
      "discounted_return needs 'gamma'",
    ),
    ('advantage', dict(name='clip', credit='x'), "now called 'advantage'"),
    ('weight', 'no_such_module:weight', "there is no module 'no_such_module'"),
    ('weight', 'jopd.losses:wieght', "jopd.losses has no function 'wieght'"),
    ('weight', 'nowhere.py:weight', 'there is no file nowhere.py'),
    ('weight', wrong_signature, 'expected a function (stats, *, settings ...)'),
    (
      'reward',
      own_weight,
      'expected a function (response, example, *, settings',
    ),
    (
      'weight',
      dict(name='gate', of='overlap', low=dict(schedule='linear_schedule')),
      "optax.linear_schedule needs 'init_value'",
    ),
    (
      'weight',
      dict(name='gate', of='overlap', low=dict(schedule='linear')),
      "optax has no schedule 'linear'",
    ),
  ],
)
def test_a_wrong_spec_is_refused_with_what_to_write(kind, spec, part):
  with pytest.raises(ConfigError) as error:
    resolve(kind, spec)
  assert part in str(error.value) and '\n' not in str(error.value)


def test_a_module_that_does_not_import_keeps_its_error(tmp_path, monkeypatch):
  # Kills: a missing import in a user's module that reads as a misspelt spec.
  (tmp_path / 'broken_module_of_mine.py').write_text('import not_there_at_all')
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(ModuleNotFoundError, match='not_there_at_all'):
    resolve('weight', 'broken_module_of_mine:weight')
  (tmp_path / 'half.py').write_text('1 / 0')
  with pytest.raises(ZeroDivisionError):
    resolve('weight', f'{tmp_path}/half.py:weight')


def test_what_changes_has_a_name_and_is_put_in_later():
  # Kills: a schedule that is resolved at every trace, and one that is lost
  # inside a nested setting.
  ramp = dict(schedule='linear_schedule', init_value=0.0, end_value=1.0)
  spec = dict(
    name='discounted_return',
    gamma=ramp | dict(transition_steps=4),
    advantage=dict(name='clip', high=dict(controlled='height')),
  )
  resolved = read_spec('advantage', spec, place='match.advantage')
  gamma, high = resolved.scalars()
  assert gamma.name == 'match.advantage.gamma' and gamma.value(1, {}) == 0.25
  assert high.name == 'match.advantage.advantage.high'
  assert high.value(0, {'height': 2.0}) == 2.0
  with pytest.raises(ConfigError, match="no callback controls 'height'"):
    high.value(0, {})
  advantage = resolved.bind({gamma.name: 0.5, high.name: 2.0})
  assert advantage(STATS).tolist() == [[2.0, 2.0]]
  with pytest.raises(ConfigError, match='must be a number, not a schedule'):
    resolve('advantage', spec)


def test_a_function_is_recorded_by_name_and_a_change_is_noticed(own_file):
  name = f'{own_file}:graded'
  function = resolving.import_function(name)
  assert resolving.qualified_name(function) == name
  assert resolving.plain({'reward': dict(name=function, bonus=(1,))}) == {
    'reward': {'name': name, 'bonus': [1]}
  }
  before = resolving.source_hash(function)
  own_file.write_text(OWN.replace('return bonus', 'return 2 * bonus'))
  assert resolving.source_hash(resolving.import_function(name)) != before


def test_functions_of_a_users_own_are_told_from_those_of_jopd(own_file):
  config = {
    'reward': f'{own_file}:graded',
    'loss': {'a': {'weight': own_weight, 'coef': 1.0}},
    'filter': 'keep_all',
    'context': {'name': 'with_template', 'template': 'a: {prompt}'},
    'tokenizer': 'C:/models',
  }
  names = [f.__name__ for f in resolving.own_functions(config)]
  assert names == ['graded', 'own_weight']


def test_imports_of_a_file_are_found_beside_it(tmp_path):
  # Kills: a helper next to the config that only imports from its own folder,
  # and a search path that keeps growing.
  (tmp_path / 'helper_beside.py').write_text('FACTOR = 3.0\n')
  path = tmp_path / 'own.py'
  path.write_text(
    'from helper_beside import FACTOR\n'
    'def graded(response, example):\n  return FACTOR\n'
  )
  before = list(sys.path)
  assert resolve('reward', f'{path}:graded')(None, None) == 3.0
  assert sys.path == before
