"""Settings that cannot work are refused by name, before anything is read."""

import functools

from ml_collections import ConfigDict
import pytest
import tiny

from jopd import rewards
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
  ('max_promt_tokens', 3, "the config has no setting 'max_promt_tokens'; did"),
  ('eval.promts', 3, "config.eval has no setting 'promts'; did you mean"),
  ('mesh.dta', 3, "config.mesh has no setting 'dta'; did you mean 'data'?"),
  ('checkpoint.evry', 3, "config.checkpoint has no setting 'evry'; did"),
  ('eval', {'prompts': 3}, 'config.eval.batch_size is missing: assign to'),
  ('eval.prompts', 0, 'config.eval: prompts must be at least 1, got 0'),
  ('eval.samples', -1, 'config.eval: samples must be at least 0, got -1'),
  ('eval.top_p', 0.0, 'config.eval: top_p must be in (0, 1]'),
  ('checkpoint.every', 0, 'config.checkpoint: every must be at least 1'),
  ('seed', -1, 'seed must be at least 0'),
  ('compute_dtype', 'float33', "compute_dtype is 'float33'; did you mean"),
  ('remat', 'dot', "remat is 'dot'; did you mean 'dots'?"),
  ('stages', (), "config.stages is empty: name stages, such as ('distil',)"),
  (
    'stages',
    ('distill',),
    "config.stages names 'distill', which is missing; did you mean",
  ),
  ('distil.stepz', 3, "config.distil: a stage has no setting 'stepz'; did"),
  ('distil.steps', 0, 'config.distil: steps must be at least 1, got 0'),
  (
    'distil.gradient_accumulation_steps',
    0,
    'gradient_accumulation_steps must be at least 1, got 0',
  ),
  (
    'distil.gradient_accumulation_steps',
    3,
    '8 rows (batch_size x group_size / num_minibatches) do',
  ),
  ('distil.num_minibatches', 0, 'num_minibatches must be at least 1, got 0'),
  (
    'distil.num_minibatches',
    3,
    '8 prompts (batch_size / processes) do not divide',
  ),
  (
    'distil.teacher_sync',
    {'techer': 'ema'},
    "teacher_sync has no setting 'techer'; did",
  ),
  ('distil.max_grad_norm', -1.0, 'max_grad_norm must be at least 0'),
  ('distil.teacher_dtype', 'int4', "teacher_dtype is 'int4'; did you mean"),
  ('distil.lora', {'alpha': 3}, "config.distil: lora: lora needs 'rank'"),
  ('distil.lora', {'rank': 1, 'alfa': 3}, "lora has no setting 'alfa'; did"),
  ('distil.lora', {'rank': 1, 'base': 'int4'}, "base is 'int4'; did you mean"),
  ('distil.loss_temperature', 0.0, 'temperature must be above 0'),
  ('distil.student', 'studnt', "config.models has no model 'studnt'; did you"),
  (
    'distil.teachers',
    {'t': 'x'},
    "config.models has no model 'x'; choose from",
  ),
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
  ('distil.loss', {}, 'config.distil: loss is empty: add a term'),
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


def test_a_teacher_does_not_follow_adapters():
  # Kills: an average over parameters that are not in the state.
  def change(config):
    config.distil.lora = ConfigDict({'rank': 2})
    config.distil.teacher_sync = ConfigDict({'teacher': 'ema'})

  assert 'lora cannot be combined with teacher_sync' in refused(change)


def test_a_stage_may_stand_unused():
  # Kills: refusing a section that --config.stages leaves out.
  config = tiny.get_config()
  config.stages = ('distil',)
  check(config)
  check_stages(config)


def test_answers_are_graded_before_they_are_needed():
  # Kills: a reference that cannot be read, found at step 1000; and a reward of
  # a user's own that is called for every row of the data.
  graded = lambda f: functools.partial(rewards.grade, f)
  known = Example('a', [], answer='1')
  missing, empty = Example('b', []), Example('c', [], answer='####')
  ours = graded(rewards.exact_match)
  check_answer(known, ours, required=True)
  check_answer(missing, ours, required=False)
  with pytest.raises(ValueError, match='no answer to grade by'):
    check_answer(missing, ours, required=True)
  with pytest.raises(ValueError, match='the reference answer is'):
    check_answer(empty, ours, required=False)
  own = graded(lambda response, example: pytest.fail('called'))
  check_answer(missing, own, required=True)


def test_a_mark_that_is_never_decoded_is_refused():
  # Kills: a reward that is 0 for ever, since special tokens are left out.
  tokenizer = builtin_tokenizer()
  settings = dict(name='boxed_match', after='</think>')
  check_marks(settings, tokenizer)
  check_marks('boxed_match', tokenizer)
  tokenizer.add_special_tokens({'extra_special_tokens': ['</think>']})
  with pytest.raises(ValueError, match="after: '</think>' is a special token"):
    check_marks(settings, tokenizer)
