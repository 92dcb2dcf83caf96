"""From responses to what is learnt: rewards, filters, masks, minibatches."""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import pytest
import tiny

from jopd.rewards import Reward
from jopd.rollout.continuous_batching import LENGTH, STOP
from jopd.rollout.sampler import Rollout
from jopd.run import build
from jopd.run import config as configs
from jopd.train import loop, pipeline, steps
from jopd.train.metrics import means
from jopd.train.rollout_batch import (
  cut_to_buckets,
  rollout_metrics,
  split_groups,
)
from jopd.train.state import init_state
from jopd.train.teachers import Frozen, freeze
from jopd.train.update_guard import first_not_finite

PROMPTS, GROUP, SLOTS = 8, 2, 16
ROWS = PROMPTS * GROUP


class FakeSampler:
  """A sampler whose row r has r tokens r, of at most 16; the last two were cut
  off. Fields can be changed."""

  def __init__(self, rows, **changed):
    length = np.arange(rows, dtype=np.int32)
    nothing = np.zeros((rows, SLOTS), np.float32)
    fields = dict(
      response=np.repeat(length[:, None], SLOTS, axis=1),
      response_length=length,
      sampler_logp=nothing,
      logp=nothing,
      end_reason=np.where(length < rows - 2, STOP, LENGTH),
      slot_steps=np.int32(15 * rows),
    )
    self.rollout = Rollout(None, None, **fields | changed)

  def __call__(self, *args, **settings):
    return jax.tree.map(jnp.asarray, self.rollout)


def make_stage(**settings):
  """A stage of 8 prompts with 2 responses each, and its next prompts."""
  config = tiny.get_config()
  config.stages = ('distil',)
  for name, value in {'group_size': GROUP, **settings}.items():
    with config.distil.ignore_type():
      config.distil[name] = value
  run, [stage], _ = build.build(config)
  # Every second response is right; the reward knows them by their order.
  rewards = iter([1.0, 0.0] * ROWS)
  run = run._replace(reward=lambda *_: Reward(next(rewards)))
  return stage, run, next(stage.prompts.batches)


def sampled(stage, run, prompts, samplers):
  """What the steps up to the learner make of responses, and their metrics."""
  programs = steps.Programs(samplers, None, None, None, {})
  frozen = Frozen(None, {role: {} for role in stage.teachers.models})
  state = init_state({}, stage.update.tx)
  batch, info = steps.rollout_step(
    stage, run, programs, frozen, state, prompts, jax.random.key(0), {}
  )
  batch, info = steps.reward_step(stage, run, prompts, batch, info)
  batch, info = steps.filter_step(stage, batch, info)
  batch, info = steps.context_step(stage, prompts, batch, info)
  row = means(rollout_metrics(batch, info, list(stage.rollouts.sources)))
  batch = cut_to_buckets(batch, run.num_length_buckets)
  update = stage.update
  parts = split_groups(batch, update.num_minibatches, stage.rollouts.group_size)
  return parts, row, info


# Kills a row that is not kept but counted, a rule that gets flat rows, and a
# share over the kept ones.
def test_what_is_filtered_out_has_no_token():
  stage, run, prompts = make_stage(filter='not_truncated')
  sampler = FakeSampler(ROWS)
  [batch], row, _ = sampled(stage, run, prompts, dict(student=sampler))
  tokens = np.arange(ROWS) * (np.arange(ROWS) < ROWS - 2)
  np.testing.assert_array_equal(batch.mask.sum(axis=1), tokens)
  assert row == {
    'response_length': np.arange(ROWS).mean(),
    'reward': 0.5,
    'reward_timeouts': 0.0,
    'completions/clipped_ratio': 2 / ROWS,
    'kept_fraction': 1 - 2 / ROWS,
    'frac_reward_zero_std': 0.0,
    'slot_occupancy': 0.5,
  }
  assert batch.row.reward is None  # no term asks for it


# Kills a mask of the first occurrence only, or of one of the ids.
def test_masked_tokens_are_masked_wherever_they_stand():
  stage, run, prompts = make_stage(mask_tokens=('<|im_end|>', '<|im_start|>'))
  assert stage.rollouts.masked_ids == (2, 1)
  response = np.tile([1, 5, 2, 2], (ROWS, SLOTS // 4)).astype(np.int32)
  length = np.full(ROWS, 6, np.int32)
  sampler = FakeSampler(ROWS, response=response, response_length=length)
  [batch], _, _ = sampled(stage, run, prompts, dict(student=sampler))
  expected = np.zeros((ROWS, SLOTS), bool)
  expected[:, [1, 5]] = True
  np.testing.assert_array_equal(batch.mask, expected)


# Kills rewards in another order than the rows, and a group cut in two.
@pytest.mark.parametrize('minibatches', [1, 2])
def test_each_update_has_whole_groups_and_their_rewards(minibatches):
  grpo = dict(
    objective='policy_gradient',
    surrogate='reinforce',
    advantage='group_advantage',
    old_policy='sampler',
  )
  stage, run, prompts = make_stage(
    num_minibatches=minibatches,
    loss=ConfigDict(dict(grpo=grpo)),
    teachers=ConfigDict(),
  )
  assert stage.loss.reads.reward
  sampler = FakeSampler(ROWS)
  batches, _, _ = sampled(stage, run, prompts, dict(student=sampler))
  assert len(batches) == minibatches
  for i, batch in enumerate(batches):
    groups = np.arange(PROMPTS)[i::minibatches]
    rows = np.stack([2 * groups, 2 * groups + 1], axis=1).ravel()
    np.testing.assert_array_equal(batch.response[:, 0], rows)
    np.testing.assert_array_equal(batch.mask.sum(axis=1), rows)
    np.testing.assert_array_equal(batch.prompt[::2], prompts.prompt[groups])
    np.testing.assert_array_equal(batch.prompt[1::2], prompts.prompt[groups])
    row = batch.row
    np.testing.assert_array_equal(row.group, np.repeat(groups, 2))
    np.testing.assert_array_equal(row.source, 0)
    np.testing.assert_array_equal(row.reward, np.tile([1.0, 0.0], len(groups)))
    np.testing.assert_array_equal(row.group_mean, 0.5)
    np.testing.assert_array_equal(row.group_std, 0.5)


# Kills a timeout that looks like a wrong answer in the metrics, a reward of 0
# for an example that cannot be graded, and parts of the wrong responses.
def test_rewards_without_a_verdict_and_parts_are_in_the_metrics():
  stage, run, prompts = make_stage(filter='keep_all')
  rewards = iter(
    [
      Reward(0.0, judged=False),
      Reward(1.5, {'right': 1.0, 'short': 0.5}),
      Reward(float('nan')),
      Reward(float('nan')),
    ]
    * (ROWS // 4)
  )
  run = run._replace(reward=lambda *_: next(rewards))
  sampler = FakeSampler(ROWS)
  _, row, info = sampled(stage, run, prompts, dict(student=sampler))
  assert row['reward'] == 0.75 and row['reward_timeouts'] == 0.5
  assert row['reward/right'] == 1.0 and row['reward/short'] == 0.5
  assert row['frac_reward_zero_std'] == 0.0  # of the groups with rewards
  assert np.isnan(info.reward_values()[1::2]).all()


# Kills: shapes that follow every length (a compilation each), tokens cut off.
def test_batches_are_cut_to_buckets():
  config = tiny.get_config()
  config.num_length_buckets, config.stages = 3, ('distil',)
  config.distil.teacher_contexts.teacher = dict(
    name='with_system', prompt='Be brief.'
  )
  config.distil.max_teacher_prompt_tokens = 48
  run, [stage], _ = build.build(config)
  prompts = next(stage.prompts.batches)
  rows = len(prompts.prompt)
  response = np.arange(rows * SLOTS).reshape(rows, SLOTS) % 100
  for longest, columns in ((1, 4), (4, 4), (5, 8), (16, 16)):
    length = np.full(rows, 1, np.int32)
    length[-1] = longest
    sampler = FakeSampler(rows, response=response, response_length=length)
    [batch], _, _ = sampled(stage, run, prompts, dict(student=sampler))
    assert batch.sampler_logp.shape == batch.response.shape == (rows, columns)
    np.testing.assert_array_equal(batch.response, response[:, :columns])
  slots = prompts.prompt.shape[1]
  teacher = batch.teachers['teacher']
  for prompt, length, most in (
    (teacher.prompt, teacher.prompt_length, 48),
    (batch.prompt, batch.prompt_length, slots),
  ):
    longest = int(np.max(length))
    assert longest <= prompt.shape[1] < 2 * longest
    assert prompt.shape[1] in (most, -(-most // 2), -(-most // 4))


WRITERS = ('student', 'teacher', 'student', 'dataset')
MIXED = dict(
  teachers=dict(teacher='teacher'),
  response_source=WRITERS,
  data=dict(
    name='blend',
    parts=dict(
      sums=dict(name='running_sum', count=32),
      rules=dict(name='shift', count=32),
    ),
  ),
  loss=dict(
    match=dict(objective='divergence', divergence='reverse_kl', rows='student'),
    imitate=dict(objective='negative_log_likelihood', rows=('dataset', 'sums')),
  ),
  batch_size=8,
  num_minibatches=2,
)


# Kills sources, groups or domains in another order than the rows, and
# demonstrations that are not those of the prompts.
def test_each_row_knows_where_it_is_from():
  config = tiny.get_config()
  config.stages = ('distil',)
  config.distil = configs.stage(**MIXED)
  run, [stage], _ = build.build(config)
  run = run._replace(reward=lambda *_: Reward(0.5))
  assert stage.rollouts.sources == dict(student=2, teacher=1, dataset=1)
  assert stage.prompts.domains == ('sums',) and stage.rollouts.mixed
  prompts = next(stage.prompts.batches)
  source = lambda first, n: FakeSampler(
    n,
    response=np.full((n, SLOTS), first, np.int32),
    response_length=np.full(n, 3, np.int32),
  )
  batches, row, _ = sampled(
    stage, run, prompts, dict(student=source(5, 16), teacher=source(6, 8))
  )
  assert row['response_length/teacher'] == 3.0
  for i, batch in enumerate(batches):
    groups = np.arange(8)[i::2]
    row = batch.row
    np.testing.assert_array_equal(row.source, [0, 1, 0, 2] * 4)
    np.testing.assert_array_equal(row.group, np.repeat(groups, 4))
    sums = [0 if prompts.examples[g].domain == 'sums' else -1 for g in groups]
    np.testing.assert_array_equal(row.domain, np.repeat(sums, 4))
    np.testing.assert_array_equal(batch.response[1::4, 0], 6)
    theirs = np.asarray(batch.response)[3::4]
    width = theirs.shape[1]
    np.testing.assert_array_equal(theirs, prompts.response[groups, :width])
    np.testing.assert_array_equal(
      batch.mask.sum(axis=1)[3::4], prompts.response_length[groups]
    )


# With all of the share the teacher writes what it would write alone. Kills: a
# mixture that the sampler does not get, and the parameters of another.
def test_a_teacher_may_be_mixed_into_every_token():
  rollouts = []
  for settings in (
    dict(teacher_mixing=dict(teacher=dict(name='mixed', share=1.0))),
    dict(response_source='teacher'),
  ):
    config = tiny.get_config()
    config.stages = ('distil',)
    config.distil.update(settings)
    run, [stage], params = build.build(config)
    frozen = freeze(stage, run, params)
    state, shardings = loop.start_state(stage, run, params)
    programs = steps.make_programs(stage, run, shardings)
    batch, _ = steps.rollout_step(
      stage,
      run,
      programs,
      frozen,
      state,
      next(stage.prompts.batches),
      jax.random.key(0),
      stage.rollouts.sampling(0, {}),
    )
    rollouts.append(batch)
  mixed, alone = rollouts
  np.testing.assert_array_equal(mixed.response, alone.response)
  np.testing.assert_array_equal(mixed.row.source, 0)
  # What was sampled from is the teacher; the student's own is kept apart.
  np.testing.assert_allclose(mixed.sampler_logp, alone.sampler_logp, atol=1e-5)
  assert np.abs(mixed.rollout_logp - alone.sampler_logp).max() > 1e-3
  assert alone.rollout_logp is None


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


@pytest.fixture(scope='module')
def update():
  """A stage that reads rewards, and all that an update of it reads."""
  config = tiny.get_config()
  config.stages = ('distil',)
  config.distil.group_size = 2
  config.distil.loss.reward = dict(
    objective='policy_gradient',
    surrogate='reinforce',
    advantage='group_advantage',
  )
  run, [stage], params = build.build(config)
  run = run._replace(reward=lambda x, _: Reward(float(len(x.text) % 2)))
  frozen = freeze(stage, run, params)
  state, shardings = loop.start_state(stage, run, params)
  programs = steps.make_programs(stage, run, shardings)
  prompts = next(stage.prompts.batches)
  batch, info = steps.rollout_step(
    *(stage, run, programs, frozen, state, prompts, jax.random.key(0)),
    stage.rollouts.sampling(0, {}),
  )
  batch, info = steps.reward_step(stage, run, prompts, batch, info)
  batch, info = steps.context_step(stage, prompts, batch, info)
  return stage, run, programs, frozen, state, steps.place(run, batch, 0)


def _poisoned(tree, *path, value=np.nan):
  """A copy in which one number is another."""
  name, *rest = path
  if rest:
    return tree | {name: _poisoned(tree[name], *rest, value=value)}
  array = tree[name]
  return tree | {name: array.at[(0,) * array.ndim].set(value)}


MLP = 'layers', 'mlp', 'up'


def _reward(frozen, state, batch):
  row = batch.row._replace(reward=batch.row.reward.at[3].set(np.inf))
  return frozen, state, batch._replace(row=row)


def _sampler(frozen, state, batch):
  # The first token is always real.
  poisoned = batch.sampler_logp.at[1, 0].set(-np.inf)
  return frozen, state, batch._replace(sampler_logp=poisoned)


def _teacher(frozen, state, batch):
  teachers = _poisoned(frozen.teachers, 'teacher', *MLP)
  return frozen._replace(teachers=teachers), state, batch


def _teacher_overflow(frozen, state, batch):
  teacher = frozen.teachers['teacher']
  huge = jax.tree.map(
    lambda x: jnp.full_like(x, 1e38), teacher['layers']['mlp']
  )
  teacher = teacher | {'layers': teacher['layers'] | {'mlp': huge}}
  return frozen._replace(teachers={'teacher': teacher}), state, batch


def _student(frozen, state, batch):
  params = _poisoned(state.params, *MLP)
  return frozen, state._replace(params=params), batch


def _overflow(frozen, state, batch):
  # Finite, but their products are not.
  layers = state.params['layers']
  huge = jax.tree.map(lambda x: jnp.full_like(x, 1e38), layers['mlp'])
  params = state.params | {'layers': layers | {'mlp': huge}}
  return frozen, state._replace(params=params), batch


CASES = {
  'a reward': (_reward, 'the batch: row.reward'),
  'a log-prob': (_sampler, 'the batch: sampler_logp'),
  'a teacher': (_teacher, 'parameters of teacher: layers.mlp.up'),
  'its products': (_teacher_overflow, 'hidden states of teacher'),
  'the student': (_student, 'parameters of student: layers.mlp.up'),
  'its own products': (_overflow, 'hidden states of student'),
}


# Kills: a search that names what follows, or the first array of a tree.
@pytest.mark.parametrize('kind', CASES)
def test_the_first_array_that_is_not_finite_is_named(update, kind):
  stage, run, programs, *rest = update
  poison, name = CASES[kind]
  trace = steps.trace_update(stage, run, programs, *poison(*rest), {})
  assert first_not_finite(trace) == name


# What the loss makes of sound numbers. Kills: a search that ends before it.
@pytest.mark.parametrize('kind', ['term', 'gradient', 'nothing'])
def test_a_loss_that_breaks_down_is_named(update, kind):
  stage, run, programs, *rest = update

  whole = programs.gradients

  def broken(*args):
    made = whole(*args)
    if kind == 'term':
      metrics = made.metrics | {'loss/reward': (jnp.nan, 1)}
      return made._replace(metrics=metrics)
    if kind == 'gradient':
      grads = _poisoned(made.grads, *MLP, value=jnp.inf)
      return made._replace(grads=grads)
    return made

  programs = programs._replace(gradients=broken)
  trace = steps.trace_update(stage, run, programs, *rest, {})
  assert (
    first_not_finite(trace)
    == {
      'term': 'a term of the loss: loss/reward',
      'gradient': 'the gradient of student: layers.mlp.up',
      'nothing': '',
    }[kind]
  )


# Kills: teachers whose whole trees are arguments of the learner.
def test_the_learner_gets_the_heads_of_teachers_alone(update):
  stage, run, _, frozen, state, batch = update
  _, heads, *_ = steps.learner_inputs(stage, run, frozen, state, batch, {})
  shapes = jax.tree.map(jnp.shape, heads)
  assert shapes == {'teacher': (run.models['teacher'].vocab_size, 16)}
