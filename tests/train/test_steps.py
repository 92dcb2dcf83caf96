"""From answers to what is learnt: grades, selection, masks, parts, by hand."""

import jax
from ml_collections import ConfigDict
import numpy as np
import pytest
import tiny

from jopd.rewards import math
from jopd.rollout.continuous_batching import LENGTH, STOP
from jopd.run import build
from jopd.train import pipeline
from jopd.train.filters import finished
from jopd.train.metrics import means
from jopd.train.state import init_state
from jopd.train.steps import Answers, Phases
from jopd.train.teachers import Frozen, freeze

PROMPTS, GROUP, SLOTS = 8, 2, 16
ROWS = PROMPTS * GROUP


def make_phases(**settings):
  """The phases of a stage of 8 prompts, 2 answers each, and its prompts."""
  config = tiny.get_config()
  config.stages = ('distil',)
  for name, value in {'group_size': GROUP, **settings}.items():
    config.distil[name] = value
  run, [stage], _ = build.build(config)
  # Every second answer is right; the grader knows them by their order.
  rewards = iter([1.0, 0.0] * ROWS)
  run = run._replace(grade=lambda text, example: next(rewards))
  return stage, run, next(stage.prompts.batches)


def answers(**changed):
  """Row r says r tokens r, of at most 16; the last two were cut off."""
  length = np.arange(ROWS, dtype=np.int32)
  nothing = np.zeros((ROWS, SLOTS), np.float32)
  end = np.where(length < ROWS - 2, STOP, LENGTH)
  response = np.repeat(length[:, None], SLOTS, axis=1)
  members = ('student',) * GROUP
  whole = Answers(
    response, length, nothing, nothing, end, np.int32(240), members
  )
  return whole._replace(**changed)


def placed(stage, run, prompts, said):
  phases = Phases(stage, run, Frozen(None, {}), None)
  grades = phases.grade(prompts, said)
  row = means(phases.measure(said, grades))
  batches = phases.pack(prompts, said, grades)
  return jax.device_get(batches), row


# Kills a row that is not kept but counted, a rule that gets flat rows, and a
# share over the kept ones.
def test_what_is_not_selected_has_no_token():
  stage, run, prompts = make_phases(select='not_truncated')
  [batch], row = placed(stage, run, prompts, answers())
  tokens = np.arange(ROWS) * (np.arange(ROWS) < ROWS - 2)
  np.testing.assert_array_equal(batch.mask.sum(axis=1), tokens)
  assert row == {
    'response_length': np.arange(ROWS).mean(),
    'reward': 0.5,
    'reward_timeouts': 0.0,
    'truncated': 2 / ROWS,
    'kept': 1 - 2 / ROWS,
    'mixed_groups': 1.0,
    'slot_occupancy': 0.5,
  }
  assert batch.row.reward is None  # no term asks for it


# Kills a mask of the first occurrence only, or of one of the ids.
def test_masked_tokens_are_masked_wherever_they_stand():
  stage, run, prompts = make_phases(mask_tokens=('<|im_end|>', '<|im_start|>'))
  assert stage.rollouts.masked_ids == (2, 1)
  response = np.tile([1, 5, 2, 2], (ROWS, SLOTS // 4)).astype(np.int32)
  length = np.full(ROWS, 6, np.int32)
  said = answers(response=response, response_length=length)
  [batch], _ = placed(stage, run, prompts, said)
  expected = np.zeros((ROWS, SLOTS), bool)
  expected[:, [1, 5]] = True
  np.testing.assert_array_equal(batch.mask, expected)


# Kills outcomes in another order than the rows, and a group cut in two.
@pytest.mark.parametrize('updates', [1, 2])
def test_each_update_has_whole_groups_and_their_outcomes(updates):
  terms = dict(
    grpo=dict(
      objective='policy_gradient',
      surrogate='reinforce',
      advantage='group_advantage',
      old_policy='sampler',
    )
  )
  stage, run, prompts = make_phases(updates=updates, terms=terms, teachers={})
  assert stage.loss.reads.reward
  batches, _ = placed(stage, run, prompts, answers())
  assert len(batches) == updates
  for i, batch in enumerate(batches):
    groups = np.arange(PROMPTS)[i::updates]
    rows = np.stack([2 * groups, 2 * groups + 1], axis=1).ravel()
    np.testing.assert_array_equal(batch.response[:, 0], rows)
    np.testing.assert_array_equal(batch.mask.sum(axis=1), rows)
    np.testing.assert_array_equal(batch.prompt[::2], prompts.prompt[groups])
    np.testing.assert_array_equal(batch.prompt[1::2], prompts.prompt[groups])
    reward, mean, std, group, origin, _, _ = batch.row
    np.testing.assert_array_equal(group, np.repeat(groups, 2))
    np.testing.assert_array_equal(origin, 0)
    np.testing.assert_array_equal(reward, np.tile([1.0, 0.0], len(groups)))
    np.testing.assert_array_equal(mean, 0.5)
    np.testing.assert_array_equal(std, 0.5)


# Kills a reward of 0 for a prompt that nobody can grade.
def test_ungraded_prompts_have_no_reward():
  stage, run, prompts = make_phases()
  examples = [x._replace(answer=None) for x in prompts.examples[:4]]
  prompts = prompts._replace(examples=(*examples, *prompts.examples[4:]))
  stage = stage._replace(select=finished)
  grades = Phases(stage, run, Frozen(None, {}), None).grade(prompts, answers())
  assert np.isnan(grades.rewards[:4]).all()
  np.testing.assert_array_equal(grades.rewards[4:], [[1.0, 0.0]] * 4)


# Kills: a timeout that looks like a wrong answer in the metrics.
def test_answers_without_a_verdict_are_counted():
  stage, run, prompts = make_phases()
  said = iter([0, 1, 0, 1] * (ROWS // 4))

  def grade(text, example):
    math._UNJUDGED[0] += next(said)
    return 0.0

  _, row = placed(stage, run._replace(grade=grade), prompts, answers())
  assert row['reward'] == 0.0 and row['reward_timeouts'] == 0.5


# Kills: shapes that follow every length (a compilation each), tokens cut off.
def test_batches_are_cut_to_buckets(make_tiny):
  built = make_tiny(
    **{
      'buckets': 3,
      'stages': ('distil',),
      'distil.group_size': 1,
      'distil.batch_size': 8,
      'distil.gradient_accumulation_steps': 1,
      'distil.teacher_contexts': {
        'teacher': {'name': 'with_system', 'prompt': 'Be brief.'}
      },
      'distil.max_teacher_prompt_tokens': 48,
    }
  )
  [stage] = built.stages
  phases = Phases(stage, built.run, Frozen(None, {}), None)
  prompts = next(stage.prompts.batches)
  rows, steps = len(prompts.prompt), built.run.max_new_tokens
  response = np.arange(rows * steps).reshape(rows, steps)
  logp = np.zeros((rows, steps), np.float32)
  end, slot_steps = np.ones(rows, np.int32), np.int32(0)

  def place(longest):
    length = np.full(rows, 1)
    length[-1] = longest
    answers = Answers(
      response, length, logp, logp, end, slot_steps, ('student',)
    )
    [batch] = phases.pack(prompts, answers, phases.grade(prompts, answers))
    return batch

  for longest, columns in ((1, 4), (4, 4), (5, 8), (16, 16)):
    batch = place(longest)
    assert batch.sampler_logp.shape == batch.response.shape == (rows, columns)
    np.testing.assert_array_equal(batch.response, response[:, :columns])
  slots = prompts.prompt.shape[1]
  for prompt, length, most in (
    (*batch.teacher_prompts['teacher'], 48),
    (batch.prompt, batch.prompt_length, slots),
  ):
    longest = int(np.max(length))
    assert longest <= prompt.shape[1] < 2 * longest
    assert prompt.shape[1] in (most, -(-most // 2), -(-most // 4))


# With all of the say the teacher writes what it would write alone. Kills: a
# blend of which the sampler is not told, and the parameters of another.
def test_a_teacher_may_have_a_say_in_every_token():
  said = []
  for settings in (
    dict(blend=ConfigDict({'teacher': dict(name='mixed', share=1.0)})),
    dict(source='teacher'),
  ):
    config = tiny.get_config()
    config.stages = ('distil',)
    config.distil.update(settings)
    run, [stage], params = build.build(config)
    shardings = jax.tree.map(lambda x: x.sharding, params['student'])
    frozen = freeze(stage, run, params)
    phases = Phases(stage, run, frozen, shardings)
    state = init_state(params['student'], stage.update.tx)
    key, how = jax.random.key(0), stage.rollouts.sampling(0, {})
    said.append(phases.respond(state, next(stage.prompts.batches), key, how))
  blended, alone = said
  assert blended.members == ('student',)
  np.testing.assert_array_equal(blended.response, alone.response)
  np.testing.assert_allclose(blended.sampler_logp, alone.logp, atol=1e-5)
  assert np.abs(blended.logp - alone.logp).max() > 1e-3  # the student's own


# Kills: a second copy of the model in a run that adapts it and learns from it,
# and a dense student whose teacher goes when its own arrays are donated.
@pytest.mark.parametrize(
  'settings, shared',
  [
    (dict(lora=dict(rank=2)), True),
    (dict(lora=dict(rank=2, base='int8'), teacher_dtype='int8'), True),
    (dict(lora=dict(rank=2), teacher_dtype='int8'), False),
    ({}, False),
  ],
  ids=['adapters', 'int8', 'two dtypes', 'dense'],
)
def test_a_model_is_held_once(settings, shared):
  config = tiny.get_config()
  config.stages = ('distil',)
  roles = {'teacher': 'student', 'other': 'student'}
  for name, value in {'teachers': roles, **settings}.items():
    config.distil[name] = value if isinstance(value, str) else ConfigDict(value)
  config.distil.loss.match.target = 'teacher'
  run, [stage], params = build.build(config)
  base, teachers = freeze(stage, run, params)
  arrays = lambda tree: {
    shard.data.unsafe_buffer_pointer()
    for leaf in jax.tree.leaves(tree)
    for shard in leaf.addressable_shards
  }
  one, other = (arrays(teachers[role]) for role in roles)
  assert one == other
  loaded = arrays(params['student'])
  if stage.student.lora:
    assert (arrays(base) == one) == shared
    # Where nothing is rounded it is what was loaded.
    assert (arrays(base) == loaded) == (not stage.student.lora.base)
  else:
    assert not one & loaded


# Kills: layers that stay on the devices, are computed with where they wait, or
# keep the learner from the head; originals that nobody needs any more.
def test_a_teacher_may_wait_in_the_memory_of_the_hosts(tmp_path):
  def run(memory):
    config = tiny.get_config()
    config.stages = ('distil',)
    config.mesh.data, config.mesh.fsdp = 4, 2
    config.eval.prompts = 8
    config.distil.response_source = 'teacher'
    config.distil.teacher_dtype = 'int8'
    config.distil.teacher_memory = memory
    run, stages, params = build.build(config)
    kept = freeze(stages[0], run, params).teachers['teacher']
    kinds = {
      name: {x.sharding.memory_kind for x in jax.tree.leaves(part)}
      for name, part in kept.items()
    }
    summary = pipeline.train(run, stages, params, tmp_path / f'in{memory}')
    assert params.keys() == {'student'}
    return summary['params_sha256'], kinds

  there, kinds = run('')
  assert set.union(*kinds.values()) == {'device'}
  waiting, kinds = run('host')
  assert kinds.pop('layers') == {'pinned_host'}
  assert set.union(*kinds.values()) == {'device'}
  assert waiting == there
