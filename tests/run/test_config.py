"""A config file becomes settings; what is wrong with it is one line."""

import pathlib

from ml_collections import ConfigDict
import pytest

from jopd.run import config as configs
from jopd.run import overrides

FILE = """
from jopd import config as configs

def get_config(mode='plain'):
  config = configs.base()
  config.seed = 7 if mode == 'seven' else 1
  config.stages = ('warm', 'distil')
  config.warm = configs.stage(source='dataset')
  config.distil = configs.stage(
      terms=dict(match=dict(support=dict(name='top_k', k=8))))
  return config
"""


@pytest.fixture
def write(tmp_path):
  def write(text, name='a.py'):
    path = tmp_path / name
    path.write_text(text)
    return str(path)

  return write


def test_overrides_reach_every_depth_with_the_type_of_the_default(write):
  # Kills: strings that stay strings, and an int where a float was.
  config = overrides.load(
    write(FILE),
    [
      '--config.seed=3',
      '--config.distil.learning_rate=1',
      '--config.distil.loss.match.support.k=16',
      "--config.stages=('distil',)",
      '--config.remat=full',
      '--config.tokenizer=a folder',
      '--config.distil.rollout.temperature=0',
    ],
  )
  assert config.seed == 3 and config.remat == 'full'
  assert config.distil.loss.match.support.k == 16
  assert config.stages == ('distil',) and config.tokenizer == 'a folder'
  rate, temperature = (
    config.distil.learning_rate,
    config.distil.rollout.temperature,
  )
  assert (rate, type(rate)) == (1.0, float)
  assert (temperature, type(temperature)) == (0.0, float)


def test_an_argument_after_a_colon_goes_to_get_config(write):
  # Kills: taking the colon for part of the name.
  path = write(FILE)
  assert overrides.load(path).seed == 1
  assert overrides.load(f'{path}:seven').seed == 7


@pytest.mark.parametrize(
  'override, part',
  [
    ('--config.distil.step=3', "config.distil has no setting 'step'; did you"),
    ('--config.sede=3', "did you mean 'seed'?"),
    ('--config.seed.x=3', "config.seed is a value and has no 'x'"),
    ('--config.distil.steps=3.5', '--config.distil.steps=3.5'),
    ('--config.num_length_buckets=perhaps', 'perhaps'),
    ('--config.distil=3', 'not a dict'),
  ],
)
def test_a_wrong_override_is_refused_by_name(write, override, part):
  # Kills: adding the misspelt key, and rounding 3.5 steps.
  with pytest.raises(ValueError) as error:
    overrides.load(write(FILE), [override])
  assert part in str(error.value)


@pytest.mark.parametrize(
  'text, part',
  [
    ('def get_config(:\n', 'line 1: invalid syntax'),
    ('\nimport no_such_module', 'line 2: ModuleNotFoundError: No module'),
    ('x = 1', "no attribute 'get_config'"),
    ('def get_config():\n  return nme', "line 2: NameError: name 'nme'"),
    ('def get_config():\n  return {}', 'returned dict'),
    (
      FILE.replace('source=', 'sorce='),
      "line 8: ValueError: a stage has no setting 'sorce'; did you mean",
    ),
    (FILE.replace('else 1', "else 'x'"), 'line 6: TypeError'),
  ],
)
def test_a_file_that_is_no_config_is_blamed_with_its_line(write, text, part):
  # Kills: a traceback through importlib, and the line of the library's code.
  path = write(text)
  with pytest.raises(ValueError) as error:
    overrides.load(path)
  assert str(error.value).startswith((path, 'get_config() of'))
  assert part in str(error.value)


def test_a_missing_file_and_one_that_is_not_python_are_told_apart(write):
  with pytest.raises(FileNotFoundError, match='no config file'):
    overrides.load('nowhere/a.py')
  with pytest.raises(ValueError, match=r'ending \.py'):
    overrides.load(write('x', 'a.json'))


def test_suggestions_name_the_nearest_or_all():
  # Kills: 'choose from' with nothing behind it.
  assert configs.did_you_mean('step', ['steps']) == "; did you mean 'steps'?"
  assert configs.did_you_mean('x', ['b', 'a']) == '; choose from a, b'
  assert configs.did_you_mean('x', []) == ''


def test_a_stage_keeps_what_it_is_not_told():
  # Kills: settings shared between two stages.
  one, two = configs.stage(steps=3, optimizer=dict(name='sgd')), configs.stage()
  assert one.steps == 3 and dict(one.optimizer) == {'name': 'sgd'}
  assert two.steps == 100 and two.optimizer.name == 'adamw'
  assert isinstance(one.optimizer, ConfigDict) and one.batch_size == 64


def test_about_names_the_place_and_keeps_the_cause():
  with pytest.raises(ValueError, match=r'^here: there: broken$') as error:
    with configs.error_context('here'), configs.error_context('there'):
      raise ValueError('broken')
  assert str(error.value.__cause__) == 'there: broken'


def test_every_config_of_the_project_loads():
  folder = pathlib.Path(__file__).parents[2] / 'configs'
  for file in folder.glob('*.py'):
    assert overrides.load(str(file)).stages
