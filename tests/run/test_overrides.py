"""A config file and the command line become a config, or one clear line."""

import pytest

from jopd.run import overrides
from jopd.run.config import ConfigError

FILE = """
from jopd.run import config as configs

def weight(stats):
  return 0 * stats.student_logp

def get_config(mode='plain'):
  config = configs.base()
  config.seed = 7 if mode == 'seven' else 1
  config.stages = ('warm', 'distil')
  config.warm = configs.stage(response_source='dataset')
  config.distil = configs.stage(
      teachers=dict(teacher='teacher'),
      loss=dict(match=dict(support=dict(name='top_k', k=8), weight=weight)))
  return config
"""


@pytest.fixture
def write(tmp_path):
  def write(text, name='a.py'):
    path = tmp_path / name
    path.write_text(text)
    return str(path)

  return write


def value_at(config, key):
  for name in key.split('.'):
    config = config[name]
  return config.to_dict() if hasattr(config, 'to_dict') else config


# Kills, in this order: text that stays text, an int where a float was, a word
# that is no Python, defaults that the file does not spell, keys of empty
# sections, a tuple as text, a dict as text, a spec by its name, settings of a
# spec that is a bare name.
@pytest.mark.parametrize(
  'key, text, expected',
  [
    ('seed', '3', 3),
    ('distil.learning_rate', '1', 1.0),
    ('distil.rollout.temperature', '0', 0.0),
    ('remat', 'full', 'full'),
    ('tokenizer', 'a folder', 'a folder'),
    ('tokenizer', '7', '7'),
    ('distil.loss.match.coef', '0.5', 0.5),
    ('distil.loss.match.weight', 'importance', 'importance'),
    ('distil.loss.match.support.k', '16', 16),
    ('distil.lora.rank', '16', 16),
    ('distil.teacher_sync.teacher', 'ema', 'ema'),
    ('distil.optimizer.b1', '0.5', 0.5),
    ('chat_template_kwargs.enable_thinking', 'False', False),
    ('models.student.path', 'a/folder', 'a/folder'),
    ('eval_tasks.amc.name', 'amc', 'amc'),
    ('data.count', '12', 12),
    ('stages', "('distil',)", ('distil',)),
    ('distil.response_source', "('student','teacher')", ('student', 'teacher')),
    ('distil.filter', "{'name': 'min_reward'}", {'name': 'min_reward'}),
    ('distil.filter.least', '0.5', {'name': 'keep_all', 'least': 0.5}),
    ('reward', 'boxed_match', 'boxed_match'),
    (
      'distil.rollout.temperature',
      "{'schedule': 'constant_schedule', 'value': 1.0}",
      {'schedule': 'constant_schedule', 'value': 1.0},
    ),
  ],
)
def test_every_leaf_can_be_overridden(write, key, text, expected):
  config = overrides.load(write(FILE), [f'--config.{key}={text}'])
  if key == 'distil.filter.least':
    key = 'distil.filter'
  result = value_at(config, key)
  assert result == expected and type(result) is type(expected)


def test_a_setting_of_a_users_function_is_kept_beside_it(write):
  # Kills: a callable that is replaced by a section without a name.
  path = write(FILE)
  config = overrides.load(path, ['--config.distil.loss.match.weight.low=2'])
  assert config.distil.loss.match.weight.low == 2
  assert config.distil.loss.match.weight.name.__name__ == 'weight'


def test_a_file_in_a_spec_is_relative_to_the_config(write, tmp_path):
  path = write(FILE)
  config = overrides.load(path, ['--config.reward=mine.py:graded'])
  assert config.reward == f'{tmp_path}/mine.py:graded'


def test_an_argument_after_a_colon_goes_to_get_config(write):
  # Kills: taking the colon for part of the name.
  path = write(FILE)
  assert overrides.load(path).seed == 1
  assert overrides.load(f'{path}:seven').seed == 7


def test_a_file_that_changed_is_read_again(write):
  # Kills: a module that is cached by its path alone.
  assert overrides.load(write(FILE)).seed == 1
  assert overrides.load(write(FILE.replace('else 1', 'else 2'))).seed == 2


@pytest.mark.parametrize(
  'override, part',
  [
    ('distil.step=3', "config.distil has no setting 'step'; did you mean"),
    ('sede=3', "did you mean 'seed'?"),
    ('seed.x=3', 'config.seed is a value and has no settings'),
    ('distil.steps=3.5', 'config.distil.steps must be int, got 3.5'),
    ('num_length_buckets=perhaps', 'must be int'),
    ('distil.lora=3', 'config.distil.lora must be a section'),
    ('distil.loss.mtach.coef=1', "did you mean 'match'?"),
    ('stop_strings=x', 'must be a tuple'),
    ('distil.terms={}', "'terms' is now called 'loss'"),
    ('distil.micro_batches=2', "now called 'gradient_accumulation_steps'"),
    ('template={}', "'template' is now called 'chat_template_kwargs'"),
    ('seed', 'expected --config.KEY=VALUE'),
  ],
)
def test_a_wrong_override_is_refused_by_name(write, override, part):
  # Kills: adding the misspelt key, and rounding 3.5 steps.
  with pytest.raises(ConfigError) as error:
    overrides.load(write(FILE), [f'--config.{override}'])
  assert part in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize(
  'text, kind',
  [
    ('def get_config(:\n', SyntaxError),
    ('\nimport no_such_module', ModuleNotFoundError),
    ('def get_config():\n  return nme', NameError),
  ],
)
def test_an_error_of_the_file_keeps_its_type(write, text, kind):
  # Kills: a bug of a user's that is reported as a wrong setting.
  with pytest.raises(kind):
    overrides.load(write(text))


@pytest.mark.parametrize(
  'text, part',
  [
    ('x = 1', 'it defines no get_config()'),
    (
      'def get_config():\n  return {}',
      'returned dict, expected the ConfigDict',
    ),
    (
      FILE.replace('response_source=', 'response_sorce='),
      "line 11: a stage has no setting 'response_sorce'; did you mean",
    ),
    (
      FILE.replace('response_source=', 'source='),
      "line 11: a stage: 'source' is now called 'response_source'",
    ),
  ],
)
def test_a_file_that_makes_no_config_is_named_with_its_line(write, text, part):
  path = write(text)
  with pytest.raises(ConfigError) as error:
    overrides.load(path)
  assert path in str(error.value) and part in str(error.value)


def test_a_missing_file_and_one_that_is_not_python_are_refused(write):
  with pytest.raises(ConfigError, match='there is no config file'):
    overrides.load('nowhere/a.py')
  with pytest.raises(ConfigError, match=r'must end in \.py'):
    overrides.load(write('x', 'a.json'))
