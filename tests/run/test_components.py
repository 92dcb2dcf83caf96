"""Sections become components; what they cannot mean is refused early."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from jopd.models.lora import Lora
from jopd.run import build
from jopd.run import config as configs
from jopd.run.components import make_optimizer
from jopd.run.config import ConfigError

GRPO = dict(
  objective='policy_gradient',
  surrogate='reinforce',
  advantage='group_advantage',
  old_policy='sampler',
)
MIXED = dict(name='mixed', share=0.2)


@pytest.fixture
def config():
  """One stage on eight prompts, that learns from rewards alone."""
  config = tiny.get_config()
  config.stages = ('distil',)
  config.distil.group_size = 2
  config.distil.loss = configs.section(grpo=GRPO)
  return config


@pytest.fixture(autouse=True)
def _unloaded(monkeypatch):
  monkeypatch.setattr(build, '_params', lambda *_: {})


def stage_of(config):
  return build.build(config).stages[0]


def refused(config):
  with pytest.raises(ConfigError) as error:
    stage_of(config)
  message = str(error.value)
  assert message.startswith('config.distil: ') and '\n' not in message
  return message


def test_adapters_are_of_matrices_that_are_there(config):
  # Kills: a name of another library that adapts nothing.
  config.distil.lora = configs.section(rank=2, targets=('q',))
  stage = stage_of(config)
  assert stage.student.lora == Lora(rank=2, targets=('q',))
  assert stage.fingerprint['lora'] == {'rank': 2, 'targets': ['q']}
  config.distil.lora.targets = ('q_proj',)
  assert "lora: targets: 'q_proj' is not a matrix of a layer" in refused(config)


def no_rewards(stats):
  """An undeclared function of a user's own."""
  return jnp.ones_like(stats.student_logp)


# Kills: a reward of 0 for what cannot be graded, found at step 1000; and
# answers that are required by a function which merely does not declare itself.
@pytest.mark.parametrize(
  'term, keep, needed',
  [
    ({}, 'keep_all', True),
    ({'advantage': 'log_ratio'}, 'nonzero_reward_std', True),
    ({'advantage': 'log_ratio'}, dict(name='min_reward', least=0.5), True),
    (
      {'advantage': 'log_ratio'},
      dict(name='not_truncated', also='min_reward'),
      True,
    ),
    ({'advantage': 'log_ratio'}, 'not_truncated', False),
    ({'advantage': 'log_ratio', 'weight': no_rewards}, 'keep_all', False),
  ],
)
def test_what_reads_rewards_needs_answers(config, tmp_path, term, keep, needed):
  path = tmp_path / 'rows.jsonl'
  path.write_text('{"prompt": "1 2", "answer": 3}\n{"prompt": "1 2"}')
  config.data = dict(name='jsonl', path=str(path))
  config.distil.loss.grpo.update(term)
  config.distil.filter = keep
  if needed:
    assert 'example rows.jsonl:2: no answer to grade by' in refused(config)
  else:
    stage_of(config)


def test_a_dataset_has_no_rewards(config):
  config.distil.response_source = 'dataset'
  config.distil.group_size = 1
  config.distil.loss.grpo.advantage = 'reward'
  assert 'responses of a dataset are not graded' in refused(config)


def test_a_filter_that_keeps_no_single_response_is_refused(config):
  # Kills: a batch that is always empty.
  config.distil.group_size = 1
  config.distil.loss.grpo.advantage = 'reward'
  for keep in ('keep_all', 'not_truncated', 'min_reward'):
    config.distil.filter = keep
    stage_of(config)
  config.distil.filter = 'nonzero_reward_std'
  assert 'filter: it keeps no group of one response' in refused(config)


def test_a_filter_may_hold_another(config):
  config.distil.filter = dict(name='min_reward', also='not_truncated')
  keep = stage_of(config).rollouts.filter
  rewards, ends = np.array([[1.0, 1.0]]), np.array([[1, 2]])
  np.testing.assert_array_equal(keep(rewards, ends, ends), [[True, False]])


def test_texts_to_mask_are_one_token_each(config):
  # Kills: a mask of the first piece of a text, which stands elsewhere too.
  config.distil.mask_tokens = ('<|im_end|>', '<|endoftext|>')
  assert stage_of(config).rollouts.masked_ids == (2, 0)
  config.distil.mask_tokens = ('<|im_end|>', '<think>')
  assert "mask_tokens: '<think>' is " in refused(config)


def test_a_teacher_that_follows_the_student(config):
  config.distil.teacher_sync.teacher = dict(name='ema', decay=0.5)
  stage = stage_of(config)
  half = stage.teachers.sync['teacher'](jnp.zeros(1), jnp.ones(1), 1)
  np.testing.assert_array_equal(half, [0.5])
  assert stage.fingerprint['teacher_sync']['teacher']['name'] == 'ema'


@pytest.mark.parametrize(
  'spec, part',
  [
    ('ema', "ema needs 'decay'"),
    ('emma', "no teacher_sync 'emma'; did you mean 'ema'?"),
    (dict(name='ema', decay=2.0), 'decay must be in [0, 1]'),
    (dict(name='periodic', every=0), 'every must be at least 1'),
  ],
)
def test_a_wrong_teacher_sync_is_refused(config, spec, part):
  config.distil.teacher_sync.teacher = spec
  message = refused(config)
  assert 'teacher_sync.teacher: ' in message and part in message


def test_only_a_model_of_the_students_shapes_can_follow_it(config):
  # Kills: an average of a student and of what has other arrays.
  config.models.teacher = tiny.SIZE | dict(num_hidden_layers=2)
  config.distil.teacher_sync.teacher = dict(name='ema', decay=0.5)
  assert "architectures of 'teacher' and 'student' differ" in refused(config)


def test_each_part_must_fill_the_mesh(config):
  # 8 prompts x 2 in 2 x 4 parts leave 2 rows, on 8 devices.
  config.distil.num_minibatches = 2
  assert stage_of(config).update.num_minibatches == 2
  config.distil.gradient_accumulation_steps = 4
  assert 'a batch of 2 rows cannot be divided' in refused(config)


def test_gradient_accumulation_keeps_groups_together(config):
  # Kills: half of a group compared with itself, as if that were all.
  config.distil.loss.grpo.advantage = 'jopd.papers.top_d:whiten'
  config.distil.batch_size = 16
  config.distil.gradient_accumulation_steps = 2
  assert stage_of(config).update.rows_together == 2
  config.distil.batch_size, config.distil.group_size = 8, 16
  config.distil.gradient_accumulation_steps = 16
  message = refused(config)
  assert (
    '8 prompts (batch_size / num_minibatches) do not divide into' in message
  )


def test_a_stage_may_read_another_context(config):
  # Kills a stage that reads what the run does.
  config.context = dict(name='with_template', template='{prompt} 7 7')
  other = stage_of(config)
  config.distil.context = dict(name='same')
  own = stage_of(config)
  lengths = [next(s.prompts.batches).prompt_length for s in (own, other)]
  np.testing.assert_array_equal(lengths[0] + 2, lengths[1])
  config.distil.context = dict(name='sane')
  assert 'context: ' in refused(config)


@pytest.mark.parametrize(
  'change, part',
  [
    (
      dict(response_source=('student', 'teacher'), group_size=1),
      "'teacher' generates some of them",
    ),
    (
      dict(max_teacher_prompt_tokens=15),
      'max_teacher_prompt_tokens = 15 is less than max_prompt_tokens',
    ),
    (dict(context='with_success'), 'context: it reads the responses'),
  ],
)
def test_a_rollout_context_that_comes_too_late_is_refused(config, change, part):
  context = dict(name='with_success', template='{prompt} {response}')
  config.distil.teacher_contexts.teacher = context
  config.distil.max_teacher_prompt_tokens = 64
  assert stage_of(config).teachers.rollout_contexts
  for name, value in change.items():
    config.distil[name] = value
  assert part in refused(config)


def test_a_gradient_over_another_temperature_is_refused(config):
  # E[grad log p] is 0 over tokens of p alone. Kills: an advantage whose mean is
  # not 0 and which pushes down what a cooler student wrote, whatever it was.
  config.distil.rollout.temperature = 0.6
  stage_of(config)
  config.distil.loss.grpo.old_policy = 'student'
  message = refused(config)
  assert 'sampled at temperature 0.6, and loss_temperature is 1' in message
  config.distil.loss_temperature = 0.6
  stage_of(config)
  config.distil.rollout.temperature = dict(
    schedule='linear_schedule',
    init_value=0.6,
    end_value=0.3,
    transition_steps=1,
  )
  config.distil.steps = 3
  assert 'sampled at temperature 0.3, and' in refused(config)


# Kills a mixture whose teacher reads something else, a share that would be
# found at the first rollout, and a ratio to a policy that did not sample.
@pytest.mark.parametrize(
  'change, part',
  [
    (
      dict(teacher_mixing=dict(tutor=MIXED)),
      "teacher_mixing has no setting 'tu",
    ),
    (dict(teacher_mixing=dict(teacher='mixd')), "did you mean 'mixed'?"),
    (
      dict(teacher_mixing=dict(teacher=MIXED | dict(share=2.0))),
      'teacher_mixing.teacher: share must be in [0, 1], got 2.0',
    ),
    (
      dict(
        teachers=dict(teacher='teacher', other='teacher'),
        teacher_mixing=dict(teacher=MIXED, other=MIXED),
      ),
      'one teacher can be mixed in, got 2',
    ),
    (dict(response_source='teacher'), "needs 'student' in response_source"),
    (
      dict(teacher_contexts=dict(teacher='same'), max_teacher_prompt_tokens=16),
      "take 'teacher' out of teacher_contexts",
    ),
    (
      dict(loss=dict(grpo=GRPO | dict(old_policy='student'))),
      "a teacher generates, too: set old_policy='sampler'",
    ),
  ],
)
def test_a_teacher_that_cannot_be_mixed_in_is_refused(config, change, part):
  config.distil.teacher_mixing = configs.section(teacher=MIXED)
  for name, value in change.items():
    config.distil[name] = (
      configs.section(**value) if isinstance(value, dict) else value
    )
  assert part in refused(config)


def update(settings, gradients):
  """What becomes of gradients, one after the other, from parameters of 0."""
  tx, _ = make_optimizer(settings)
  params = jnp.zeros_like(jnp.asarray(gradients[0]))
  state = tx.init(params)
  for gradient in gradients:
    change, state = tx.update(jnp.asarray(gradient), state, params)
  return change


def test_the_gradient_is_clipped_before_the_learning_rate():
  # |(3, 4)| = 5 is scaled to 2; sgd multiplies by -0.4.
  # Kills: clipping each element, and clipping after the learning rate.
  settings = dict(learning_rate=0.4, optimizer=dict(name='sgd'))
  for norm, expected in ((2.0, [-0.48, -0.64]), (6.0, [-1.2, -1.6])):
    stage = configs.stage(max_grad_norm=norm, **settings)
    np.testing.assert_allclose(update(stage, [[3.0, 4.0]]), expected, rtol=1e-6)


# Kills: a first update of rate 0, and a decay that counts batches of prompts.
@pytest.mark.parametrize(
  'schedule, rates',
  [
    ('constant', [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]),
    ('linear', [0.25, 0.5, 0.75, 1.0, 2 / 3, 1 / 3, 0.0]),
    ('cosine', [0.25, 0.5, 0.75, 1.0, 0.75, 0.25, 0.0]),
  ],
)
def test_the_rate_warms_up_and_decays(schedule, rates):
  stage = configs.stage(
    steps=3,
    num_minibatches=2,
    learning_rate=1.0,
    warmup_steps=3,
    lr_schedule=schedule,
  )
  _, rate = make_optimizer(stage)
  np.testing.assert_allclose([rate(t) for t in range(7)], rates, atol=1e-6)


def test_an_optimizer_is_one_of_optax_or_a_function():
  # Kills: settings that are dropped, and names alone.
  def slow(learning_rate, *, factor):
    return optax.sgd(lambda step: factor * learning_rate(step))

  stage = configs.stage(
    learning_rate=1.0,
    max_grad_norm=0.0,
    optimizer=dict(name=slow, factor=0.5),
  )
  np.testing.assert_allclose(update(stage, [[1.0]]), [-0.5])


@pytest.mark.parametrize(
  'settings, part',
  [
    (dict(optimizer=dict(name='adamv')), "no optimizer 'adamv'; did you mean"),
    (dict(optimizer=dict(name='sgd', b1=0.9)), "has no setting 'b1'"),
    (
      dict(lr_schedule='cosin'),
      "no lr_schedule 'cosin'; did you mean 'cosine'",
    ),
  ],
)
def test_a_wrong_optimizer_is_refused(settings, part):
  with pytest.raises(ConfigError) as error:
    make_optimizer(configs.stage(**settings))
  assert part in str(error.value)
