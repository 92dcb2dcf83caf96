"""Settings that cannot work are refused by name, before anything is read."""

from ml_collections import ConfigDict
import pytest
import tiny

from jopd.data.examples import Example
from jopd.data.tokenizer import builtin_tokenizer
from jopd.run.checks import check, check_answer, check_marks, check_stages


def refused(change):
  config = tiny.get_config()
  change(config)
  with pytest.raises(ValueError) as error:
    check(config)
    check_stages(config)
  return str(error.value)


def test_what_the_tests_run_is_fine():
  check(tiny.get_config())
  check_stages(tiny.get_config())


WRONG = [
  ('max_promt_tokens', 3, "a config has no setting 'max_promt_tokens'; did"),
  ('eval.promts', 3, "config.eval has no setting 'promts'; did you mean"),
  ('mesh.dta', 3, "config.mesh has no setting 'dta'; did you mean 'data'?"),
  ('checkpoint.evry', 3, "config.checkpoint has no setting 'evry'; did"),
  ('eval', {'prompts': 3}, "config.eval has lost its 'batch_size'"),
  ('eval.prompts', 0, 'config.eval: prompts must be at least 1, got 0'),
  ('eval.samples', -1, 'config.eval: samples must be at least 0, got -1'),
  ('eval.top_p', 0.0, 'config.eval: top_p must be in (0, 1]'),
  ('checkpoint.every', 0, 'config.checkpoint: every must be at least 1'),
  ('seed', -1, 'seed must be at least 0'),
  ('compute_dtype', 'float33', "compute_dtype is 'float33'; did you mean"),
  ('remat', 'dot', "remat is 'dot'; did you mean 'dots'?"),
  ('stages', (), "a config needs stages, such as ('distil',)"),
  ('stages', ('distill',), "config.stages names 'distill'; did you mean 'dist"),
  ('distil.stepz', 3, "config.distil: a stage has no setting 'stepz'; did"),
  ('distil.steps', 0, 'config.distil: steps must be at least 1, got 0'),
  (
    'distil.gradient_accumulation_steps',
    0,
    'micro_batches must be at least 1, got 0',
  ),
  (
    'distil.gradient_accumulation_steps',
    3,
    '8 rows (batch_size x group_size / updates) do',
  ),
  ('distil.num_minibatches', 0, 'updates must be at least 1, got 0'),
  (
    'distil.num_minibatches',
    3,
    '8 prompts (batch_size / processes) do not divide',
  ),
  (
    'distil.teacher_sync',
    {'techer': 'ema'},
    "moving has no setting 'techer'; did",
  ),
  ('distil.max_grad_norm', -1.0, 'max_grad_norm must be at least 0'),
  ('distil.teacher_dtype', 'int4', "teacher_dtype is 'int4'; did you mean"),
  ('distil.lora', {'alpha': 3}, "config.distil: lora: it needs 'rank'"),
  ('distil.lora', {'rank': 1, 'alfa': 3}, "lora: it has no setting 'alfa'; di"),
  ('distil.lora', {'rank': 1, 'base': 'int4'}, "base is 'int4'; did you mean"),
  ('distil.loss_temperature', 0.0, 'temperature must be above 0'),
  ('distil.student', 'studnt', "no model 'studnt' in config.models; did you"),
  ('distil.teachers', {'t': 'x'}, "no model 'x' in config.models; choose from"),
  (
    'distil.response_source',
    'teachr',
    "source is 'teachr'; did you mean 'teacher'?",
  ),
  (
    'distil.teacher_contexts',
    {'techer': 'same'},
    "contexts has no setting 'techer'",
  ),
  (
    'distil.teacher_contexts',
    {'teacher': 'same'},
    'max_teacher_prompt_tokens must be at',
  ),
  ('distil.rollout.topk', 3, "rollout has no setting 'topk'; did you mean"),
  ('distil.loss', {}, 'config.distil: terms is empty: there is no loss'),
  ('warm.group_size', 2, 'config.warm: a dataset has one response'),
]


@pytest.mark.parametrize('key, value, part', WRONG)
def test_a_wrong_setting_is_one_clear_line(key, value, part):
  # Kills: each line, the check that is not there.
  def change(config):
    *path, name = key.split('.')
    section = config
    for step in path:
      section = section[step]
    if isinstance(value, dict):
      section[name] = ConfigDict(value)
    else:
      section[name] = value

  message = refused(change)
  assert part in message and '\n' not in message


def test_nobody_follows_adapters():
  # Kills: an average over parameters that are not in the state.
  def change(config):
    config.distil.lora = ConfigDict({'rank': 2})
    config.distil.teacher_sync = ConfigDict({'teacher': 'ema'})

  assert 'lora: teachers that move follow all parameters' in refused(change)


def test_a_stage_may_stand_unused():
  # Kills: refusing a section that --config.stages leaves out.
  config = tiny.get_config()
  config.stages = ('distil',)
  check(config)
  check_stages(config)


def test_answers_are_graded_before_they_are_needed():
  def grade(text, example):
    if not example.answer:
      raise ValueError('empty')
    return 0.0

  known, missing = Example('a', [], answer='1'), Example('b', [])
  check_answer(known, grade, required=True)
  check_answer(missing, grade, required=False)
  with pytest.raises(ValueError, match='no answer to grade by'):
    check_answer(missing, grade, required=True)
  with pytest.raises(ValueError, match='empty'):
    check_answer(Example('c', [], answer=''), grade, required=False)


def test_a_mark_that_is_never_decoded_is_refused():
  # Kills: a reward that is 0 for ever, since special tokens are left out.
  tokenizer = builtin_tokenizer()
  settings = dict(name='boxed_match', after='</think>')
  check_marks(settings, tokenizer)
  check_marks('boxed_match', tokenizer)
  tokenizer.add_special_tokens({'extra_special_tokens': ['</think>']})
  with pytest.raises(ValueError, match="after: '</think>' is a special token"):
    check_marks(settings, tokenizer)
