"""A stage from its settings: what it needs is found out, and refused early."""

import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import pytest
import tiny

from jopd.models.lora import Lora
from jopd.run import build

GRPO = dict(
  objective='policy_gradient',
  surrogate='reinforce',
  advantage='group_advantage',
  old_policy='sampler',
)


@pytest.fixture
def config():
  """One stage on eight prompts, that learns from rewards alone."""
  config = tiny.get_config()
  config.stages = ('distil',)
  config.distil.group_size = 2
  config.distil.loss = ConfigDict({'grpo': GRPO})
  return config


@pytest.fixture(autouse=True)
def _unloaded(monkeypatch):
  monkeypatch.setattr(build, '_params', lambda *_: {})


def stage_of(config):
  return build.build(config).stages[0]


def refused(config):
  with pytest.raises(ValueError) as error:
    stage_of(config)
  message = str(error.value)
  assert message.startswith('config.distil: ') and '\n' not in message
  return message


def unanswered(config, tmp_path):
  path = tmp_path / 'rows.jsonl'
  path.write_text('{"prompt": "1 2", "answer": 3}\n{"prompt": "1 2"}')
  config.data = ConfigDict(dict(name='jsonl', path=str(path)))
  return config


def test_a_stage_knows_what_its_terms_read(config):
  stage = stage_of(config)
  assert (
    stage.loss.reads.reward
    and stage.update.num_minibatches == 1
    and stage.teachers.sync == {}
  )
  config.distil.loss.grpo.credit = 'log_ratio'
  assert not stage_of(config).reads_rewards


def test_adapters_are_of_matrices_that_are_there(config):
  # Kills: a name of another library that adapts nothing, found out by nobody.
  config.distil.lora = ConfigDict({'rank': 2, 'targets': ('q',)})
  stage = stage_of(config)
  assert stage.student.lora == Lora(rank=2, targets=('q',))
  assert stage.fingerprint['lora'] == {'rank': 2, 'targets': ['q']}
  config.distil.lora.targets = ('q_proj',)
  assert "lora: targets: 'q_proj' is no matrix of a layer; ch" in refused(
    config
  )


# Kills: a reward of 0 for what nobody can grade, found out at step 1000.
@pytest.mark.parametrize(
  'terms, select, needed',
  [
    (GRPO, 'every', True),
    (GRPO | dict(advantage='log_ratio'), 'nonzero_reward_std', True),
    (
      GRPO | dict(advantage='log_ratio'),
      dict(name='min_reward', least=0.5),
      True,
    ),
    (GRPO | dict(advantage='log_ratio'), 'not_truncated', False),
  ],
)
def test_whoever_reads_rewards_needs_answers(
  config, tmp_path, terms, select, needed
):
  config.distil.loss.grpo = ConfigDict(terms)
  del config.distil.filter
  config.distil.filter = ConfigDict(select) if type(select) is dict else select
  config = unanswered(config, tmp_path)
  if needed:
    assert 'example rows.jsonl:2: no answer to grade by' in refused(config)
  else:
    stage_of(config)


def test_a_dataset_has_no_rewards(config):
  config.distil.response_source = 'dataset'
  config.distil.group_size = 1
  config.distil.loss.grpo.credit = 'reward'
  assert 'responses of a dataset alone are not graded' in refused(config)


# Kills: an advantage that is always 0, a batch that is always empty.
def test_a_group_of_one_is_refused_where_groups_are_compared(config):
  config.distil.group_size = 1
  assert 'terms.grpo: it teaches nothing: with group_size 1' in refused(config)
  config.distil.loss.grpo.credit = 'reward'
  for rule in ('every', 'not_truncated', 'right'):
    config.distil.filter = rule
    stage_of(config)
  config.distil.filter = 'nonzero_reward_std'
  assert 'select: it keeps nothing of groups of one' in refused(config)


# Kills: a rule with a misspelt setting, and one that fails at the first step.
@pytest.mark.parametrize(
  'select, part',
  [
    (
      'mixed_reward',
      "select: jopd.train.filters has no 'mixed_reward'; did you mean 'm",
    ),
    (dict(name='min_reward', most=1), "right has no setting 'most'"),
    (
      dict(name='min_reward', also='finish'),
      "has no 'finish'; did you mean 'finis",
    ),
  ],
)
def test_a_wrong_rule_is_refused(config, select, part):
  del config.distil.filter
  config.distil.filter = ConfigDict(select) if type(select) is dict else select
  assert part in refused(config)


def test_a_rule_may_hold_another(config):
  del config.distil.filter
  config.distil.filter = ConfigDict(
    dict(name='min_reward', also='not_truncated')
  )
  rewards, ends = np.array([[1.0, 1.0]]), np.array([[1, 2]])
  keep = stage_of(config).filter(rewards, ends, ends)
  np.testing.assert_array_equal(keep, [[True, False]])


# Kills: a mask of the first piece of a text, which stands elsewhere too.
def test_texts_to_mask_are_one_token_each(config):
  config.distil.mask_tokens = ('<|im_end|>', '<|endoftext|>')
  assert stage_of(config).masked_ids == (2, 0)
  config.distil.mask_tokens = ('<|im_end|>', '<think>')
  assert "mask_tokens: '<think>' is " in refused(config)


def test_a_teacher_that_moves(config):
  config.distil.teacher_sync = ConfigDict(
    {'teacher': {'name': 'ema', 'lr_schedule': 0.5}}
  )
  stage = stage_of(config)
  half = stage.teachers.sync['teacher'](jnp.zeros(1), jnp.ones(1), 1)
  np.testing.assert_array_equal(half, [0.5])
  assert stage.fingerprint['teacher_sync']['teacher']['name'] == 'ema'


@pytest.mark.parametrize(
  'spec, part',
  [
    ('ema', "moving.teacher: jopd.train.teacher_sync.ema needs 'lr_schedule'"),
    ('emma', "followers has no 'emma'; did you mean 'ema'?"),
    (dict(name='ema', decay=2.0), 'moving.teacher: decay must be in [0, 1]'),
    (
      dict(name='periodic', every=0),
      'moving.teacher: every must be at least 1',
    ),
  ],
)
def test_a_wrong_follower_is_refused(config, spec, part):
  spec = ConfigDict(spec) if type(spec) is dict else spec
  config.distil.teacher_sync = ConfigDict({'teacher': spec})
  assert part in refused(config)


# Kills: an average of a student and of what has other arrays.
def test_only_a_model_of_the_students_sizes_can_follow_it(config):
  config.models.teacher = ConfigDict(tiny.SIZE | dict(num_hidden_layers=2))
  config.distil.teacher_sync = ConfigDict(
    {'teacher': {'name': 'ema', 'lr_schedule': 0.5}}
  )
  message = refused(config)
  assert "moving.teacher: 'teacher' is built otherwise than 'stud" in message


# 8 prompts in 2 updates of 2 micro-batches leave 4 rows, on 8 devices.
def test_each_part_must_fill_the_mesh(config):
  config.distil.num_minibatches = 2
  assert stage_of(config).num_minibatches == 2
  config.distil.gradient_accumulation_steps = 2
  assert 'a batch of 4 rows cannot be divided' in refused(config)


# Kills a stage that reads what the run does, and an evaluation that reads what
# a stage does.
def test_a_stage_may_read_another_context(config):
  config.context = dict(name='with_template', template='{prompt} 7 7')
  other = stage_of(config)
  config.distil.context = dict(name='same')
  own = stage_of(config)
  lengths = [next(s.batches).prompt_length for s in (own, other)]
  np.testing.assert_array_equal(lengths[0] + 2, lengths[1])
  config.distil.context = dict(name='sane')
  assert refused(config).startswith('config.distil: context: ')


# What is told of responses is told when they are there, in rooms of one size.
@pytest.mark.parametrize(
  'change, part',
  [
    (
      dict(source=('student', 'teacher'), group_size=1),
      'contexts.teacher: it tells of the responses, and this teacher writes',
    ),
    (
      dict(max_teacher_prompt_tokens=15),
      'contexts.teacher: max_teacher_prompt_tokens = 15 is less than max_prompt_tok',
    ),
  ],
)
def test_a_teacher_that_cannot_be_told_of_responses_is_refused(
  config, change, part
):
  told = dict(name='with_success', template='{prompt} {response}')
  config.distil.teacher_contexts = ConfigDict(dict(teacher=told))
  config.distil.max_teacher_prompt_tokens = 64
  assert stage_of(config).told
  for name, value in change.items():
    with config.distil.ignore_type():  # a source is a name, or several
      config.distil[name] = value
  assert part in refused(config)


# Kills: half of a group compared with itself, as if that were all.
def test_micro_batches_do_not_part_groups(config):
  grpo = GRPO | dict(advantage=dict(name='whiten', advantage='log_ratio'))
  config.distil.loss = ConfigDict(dict(grpo=grpo))
  config.distil.batch_size, config.distil.gradient_accumulation_steps = 16, 2
  assert stage_of(config).together == 2
  config.distil.batch_size, config.distil.group_size = 8, 16
  config.distil.gradient_accumulation_steps = 16
  assert (
    'terms.grpo: its weight or credit looks at the responses to a prompt, and'
    ' 8 prompts (batch_size / updates) do not divide into 16' in refused(config)
  )


# E[grad log p] is 0 over tokens of p alone. Kills: a credit whose mean is not 0
# pushing down what a cooler student said, whatever it was.
def test_a_gradient_over_another_temperature_is_refused(config):
  grpo = config.distil.loss.grpo
  config.distil.rollout.temperature = 0.6
  stage_of(config)
  grpo.anchor = 'student'
  assert (
    'terms.grpo: the anchor' in (said := refused(config))
    and 'sampled at temperature 0.6 and learnt at 1,' in said
  )
  config.distil.loss_temperature = 0.6
  stage_of(config)
  falls = dict(init_value=0.6, end_value=0.3, transition_steps=1)
  falls = dict(schedule='linear_schedule', **falls)
  with config.distil.rollout.ignore_type():
    config.distil.rollout.temperature = ConfigDict(falls)
  config.distil.steps = 3
  assert 'sampled at temperature 0.3 and learnt at 0.6,' in refused(config)


BLEND = dict(name='mixed', share=0.2)


# Kills a blend whose teacher reads something else, a share or a k that would be
# found on the first rollout, and a ratio to a policy that did not sample.
@pytest.mark.parametrize(
  'change, part',
  [
    (dict(blend=dict(tutor=BLEND)), "blend has no setting 'tutor'"),
    (
      dict(blend=dict(teacher='mixd')),
      "jopd.rollout.teacher_mixing has no 'mixd'; did you mean 'mixed'?",
    ),
    (
      dict(blend=dict(teacher=BLEND | dict(share=2.0))),
      'blend.teacher: share must be in [0, 1], got 2.0',
    ),
    (
      dict(blend=dict(teacher=dict(name='speculative', k=10**6))),
      'blend.teacher: k must be from 1 to the ',
    ),
    (
      dict(
        teachers=dict(teacher='teacher', other='teacher'),
        blend=dict(teacher=BLEND, other=BLEND),
      ),
      'one teacher can have a say, and 2 are named',
    ),
    (dict(source='teacher'), 'the student writes nothing here'),
    (
      dict(contexts=dict(teacher='same'), max_teacher_prompt_tokens=16),
      'blend.teacher: both read the prompt of the student',
    ),
    (
      dict(terms=dict(grpo=GRPO | dict(old_policy='student'))),
      'with a blend responses are of a teacher, too: use anchor=',
    ),
  ],
)
def test_a_blend_that_cannot_be_is_refused(config, change, part):
  config.distil.teacher_mixing = ConfigDict(dict(teacher=BLEND))
  for name, value in change.items():
    config.distil[name] = ConfigDict(value) if type(value) is dict else value
  assert part in refused(config)


def test_a_blend_is_a_function(config):
  config.distil.teacher_mixing = ConfigDict(dict(teacher=BLEND))
  blend = stage_of(config).teacher_mixing['teacher']
  half = jnp.log(jnp.array([0.0, 1.0]))
  np.testing.assert_allclose(
    jnp.exp(blend(half, half[::-1])), [0.2, 0.8], rtol=1e-6
  )
