"""A run from config to summary: reproducible, resumable, in every stage."""

import json
import logging

import jax
import numpy as np
import pytest
import tiny

from jopd.compilation import Program
from jopd.models import hf
from jopd.train import pipeline
from jopd.train.checkpoint import Checkpoints
from jopd.train.errors import NonFiniteLossError
from jopd.train.metrics import MetricsLog


@pytest.fixture(scope='module')
def whole(make_tiny, train, tmp_path_factory):
  """An uninterrupted run on eight devices, and where it lies."""
  workdir = tmp_path_factory.mktemp('whole')
  return *train(make_tiny(), workdir), workdir


def test_the_summary_says_what_was_asked_of_it(whole):
  summary, _, workdir = whole
  assert json.loads((workdir / 'summary.json').read_text()) == summary
  assert set(summary['stages']) == {'warm', 'distil'}
  for result in (summary, *summary['stages'].values()):
    assert 0 <= result['student_before'] <= 1
    assert 0 <= result['student_after'] <= 1
    assert result['compile_seconds'] > 0
    assert {'rollout', 'teacher', 'learner', 'save', 'eval'} <= set(
      result['wall_seconds']
    )
  assert summary['steps'] == 7
  assert summary['stages']['warm']['teacher'] is None
  assert summary['stages']['warm']['gap_recovery'] is None
  assert summary['stages']['distil']['teacher'] is not None
  assert summary['versions']['jax'] == jax.__version__
  # The second stage goes on with what the first one made.
  before, after = (summary['stages'][s] for s in ('distil', 'warm'))
  assert before['student_before'] == after['student_after']


def test_the_student_to_take_away_is_the_one_that_was_trained(whole):
  summary, _, _ = whole
  _, params = hf.load(summary['model'])
  assert pipeline.params_sha256(params) == summary['params_sha256']
  tokenizer = hf.load_tokenizer(summary['model'])
  assert hf.stop_ids(summary['model'], tokenizer) == (tokenizer.eos_token_id,)


def test_the_same_seed_gives_the_same_bytes(whole, make_tiny, tmp_path, train):
  summary, rows = train(make_tiny(), tmp_path)
  assert summary['params_sha256'] == whole[0]['params_sha256']
  assert rows == whole[1]
  other, _ = train(make_tiny(seed=1), tmp_path / 'other')
  assert other['params_sha256'] != summary['params_sha256']


# Checkpoints are at even steps: 3 and 4 redo a step, 0 starts the stage anew.
# Kills: keys, data position, moments or log rows that are not restored.
@pytest.mark.parametrize(
  ('stage', 'stop'), [('warm', 1), ('distil', 0), ('distil', 3), ('distil', 4)]
)
def test_an_interrupted_run_ends_with_the_same_bytes(
  whole, make_tiny, tmp_path, stage, stop, train, interrupt
):
  with pytest.raises(KeyboardInterrupt):
    train(interrupt(make_tiny(), stage, stop), tmp_path)
  summary, rows = train(make_tiny(), tmp_path)
  assert summary['params_sha256'] == whole[0]['params_sha256']
  assert rows == whole[1]


def test_a_finished_run_is_not_trained_again(whole, make_tiny, train, caplog):
  built = make_tiny()
  with caplog.at_level(logging.INFO, 'jopd.train'):
    summary, rows = train(built, whole[2])
  assert caplog.messages == [
    'warm: already finished',
    'distil: already finished',
  ]
  assert summary['params_sha256'] == whole[0]['params_sha256']
  assert rows == whole[1]


# Kills: sampling from one policy and training another; a wrong group order.
def test_the_learner_scores_what_the_sampler_recorded(whole):
  rows = [json.loads(line) for line in whole[1].splitlines()]
  first = next(
    r
    for r in rows
    if (r['stage'], r['kind'], r['step']) == ('distil', 'train', 1)
  )
  assert first['sampling/logp_difference'] < 1e-5  # of every token
  assert 0 < first['response_length'] <= 16
  assert 0 < first['slot_occupancy'] <= 1


# Kills: a difference that is taken of one model with itself.
@pytest.mark.parametrize('dtype', ['bfloat16', 'int8'])
def test_the_difference_of_coarser_rollouts_is_logged(
  make_tiny, tmp_path, dtype, train, rows_of
):
  built = make_tiny(
    **{
      'stages': ('distil',),
      'distil.steps': 1,
      'distil.rollout_dtype': dtype,
      'eval.prompts': 8,
    }
  )
  _, log = train(built, tmp_path)
  first = rows_of(log)[0]
  assert 1e-4 < first['sampling/logp_difference'] < 0.1


# The student's buffers are donated; its frozen copy must outlive them.
def test_a_model_can_teach_itself(make_tiny, tmp_path, train, rows_of):
  built = make_tiny(
    **{'stages': ('distil',), 'distil.teachers': {'teacher': 'student'}}
  )
  summary, log = train(built, tmp_path)
  first = rows_of(log)[0]
  assert abs(first['reverse_kl']) < 1e-6
  assert summary['teacher'] is None


# The teacher is the student but for rounding, and speaks itself. Kills: one
# that is widened wrongly, or never rounded; eight bits that the sampler rounds
# again.
@pytest.mark.parametrize('dtype', ['bfloat16', 'int8'])
def test_a_coarser_teacher_is_nearly_the_same(
  make_tiny, tmp_path, dtype, train, rows_of
):
  built = make_tiny(
    **{
      'stages': ('distil',),
      'distil.teachers': {'teacher': 'student'},
      'distil.teacher_dtype': dtype,
      'distil.response_source': 'teacher',
      'distil.rollout_dtype': 'int8',
      'distil.steps': 1,
      'eval.prompts': 8,
    }
  )
  _, log = train(built, tmp_path)
  first = rows_of(log)[0]
  assert 1e-8 < first['reverse_kl'] < 1e-3


ADAPTED = {
  'distil.lora': {'rank': 2, 'targets': ('q', 'up')},
  'distil.learning_rate': 0.03,
  'distil.teachers': {'teacher': 'student'},
  'distil.steps': 3,
  'eval.prompts': 8,
}


@pytest.fixture(scope='module')
def adapted(make_tiny, tmp_path_factory, train):
  """A run whose second stage trains adapters of what the first one left."""
  workdir = tmp_path_factory.mktemp('adapted')
  return *train(make_tiny(**ADAPTED), workdir), workdir


# The student is its teacher until it learns, and samples what it scores. Kills:
# adapters that the sampler, the evaluation or the folder does not get.
def test_adapters_are_sampled_evaluated_and_saved(adapted):
  summary, rows, workdir = adapted
  rows = [json.loads(line) for line in rows.splitlines()]
  train = [r for r in rows if (r['stage'], r['kind']) == ('distil', 'train')]
  assert abs(train[0]['reverse_kl']) < 1e-6 < train[-1]['reverse_kl']
  assert all(row['sampling/logp_difference'] < 1e-5 for row in train)
  stages = summary['stages']
  assert stages['distil']['student_before'] == stages['warm']['student_after']
  before, after = (
    hf.load(workdir / stage / 'model')[1] for stage in ('warm', 'distil')
  )
  assert pipeline.params_sha256(after) == summary['params_sha256']
  changed = jax.tree.map(lambda a, b: bool((a != b).any()), before, after)
  layers = changed['layers']
  assert layers['attention'].pop('q') and layers['mlp'].pop('up')
  assert not any(jax.tree.leaves(changed))


def test_an_interrupted_run_with_adapters_ends_with_the_same_bytes(
  adapted, make_tiny, tmp_path, monkeypatch, train, interrupt
):
  # Kills: adapters that are drawn anew, a base that is not what it was, or that
  # is written to each checkpoint.
  saved, save = [], Checkpoints.save

  def spy(self, step, state, *args, **options):
    saved.append(sum(x.size for x in jax.tree.leaves(state)))
    save(self, step, state, *args, **options)

  monkeypatch.setattr(Checkpoints, 'save', spy)
  with pytest.raises(KeyboardInterrupt):
    train(interrupt(make_tiny(**ADAPTED), 'distil', 2), tmp_path)
  summary, rows = train(make_tiny(**ADAPTED), tmp_path)
  assert summary['params_sha256'] == adapted[0]['params_sha256']
  assert rows == adapted[1]
  # Adapters and their moments: q, of 16 x 16, and up, of 16 x 32, at rank 2;
  # a few counts, and the norms of the last 32 gradients.
  assert 0 <= saved[-1] - 3 * 2 * (16 + 16 + 16 + 32) - 32 < 8


# Kills: a start that is read once the student has gone, or not at all.
@pytest.mark.parametrize('start, apart', [('student', False), ('', True)])
def test_a_model_can_begin_as_another_one(
  make_tiny, tmp_path, start, apart, train, rows_of
):
  built = make_tiny(
    **{
      'stages': ('distil',),
      'distil.student': 'teacher',
      'distil.init_from': start,
      'distil.teachers': {'teacher': 'student'},
      'distil.steps': 1,
      'eval.prompts': 8,
    }
  )
  _, log = train(built, tmp_path)
  first = rows_of(log)[0]
  assert (abs(first['reverse_kl']) > 1e-4) == apart


# Kills: a context that reaches the student too, or moves the response.
def test_a_teacher_may_read_more_than_the_student(
  make_tiny, tmp_path, train, rows_of
):
  built = make_tiny(
    **{
      'stages': ('distil',),
      'distil.steps': 1,
      'distil.teachers': {'teacher': 'student'},
      'distil.teacher_contexts': {
        'teacher': {'name': 'with_system', 'prompt': 'Be brief.'}
      },
      'distil.max_teacher_prompt_tokens': 48,
    }
  )
  _, log = train(built, tmp_path)
  first = rows_of(log)[0]
  assert first['reverse_kl'] > 1e-4
  assert abs(first['sampler_logp'] - first['student_logp']) < 1e-5


GRPO = dict(
  objective='policy_gradient',
  surrogate=dict(name='ppo_clip', low=0.2, high=0.28),
  advantage='group_advantage',
  old_policy='sampler',
)
EVERYTHING = {
  'stages': ('distil',),
  'distil.steps': 4,
  'distil.num_minibatches': 2,
  'distil.group_size': 4,
  'distil.teachers': {
    'teacher': 'student',
    'slow': 'student',
    'old': 'student',
  },
  'distil.teacher_sync': {
    'slow': {'name': 'ema', 'decay': 0.9},
    'old': {'name': 'periodic', 'every': 3},
  },
  'distil.loss': {
    'grpo': GRPO,
    'stay': {'objective': 'kl_estimate', 'estimator': 'k3', 'coef': 0.1},
    'slow': {
      'objective': 'divergence',
      'divergence': 'reverse_kl',
      'target': {'name': 'teacher', 'role': 'slow'},
    },
    'old': {
      'objective': 'divergence',
      'divergence': 'reverse_kl',
      'target': {'name': 'teacher', 'role': 'old'},
    },
  },
}


@pytest.fixture(scope='module')
def everything(make_tiny, tmp_path_factory, train, rewarded):
  """Rewards, two updates a step, an average and a snapshot; eight devices."""
  workdir = tmp_path_factory.mktemp('everything')
  return train(rewarded(make_tiny(**EVERYTHING)), workdir)


# Kills: one teacher for all roles, followers that stand still, and those that
# are the student itself. After the first update all followers but the average
# are what the student was; each row is the mean over the two updates of a step.
def test_teachers_follow_each_in_its_own_way(everything, rows_of):
  rows = rows_of(everything[1])
  assert [row['step'] for row in rows] == [1, 2, 3, 4]
  first, second = rows[:2]
  assert 0 < first['loss/slow'] < first['loss/old']
  # The snapshot is of update 3: in update 4 it agrees with the student.
  assert first['loss/old'] < second['loss/old']
  last = rows[-1]
  assert last['loss/old'] < last['reverse_kl']  # of the frozen teacher
  assert last['loss/slow'] < last['reverse_kl']


# What sampled is what scores, while the student has left both behind. Kills:
# rollouts of the student, or of the follower as it was at the stage's start.
def test_a_follower_may_speak(make_tiny, tmp_path, train, rows_of):
  built = make_tiny(
    **{
      'stages': ('distil',),
      'distil.steps': 3,
      'distil.response_source': 'slow',
      'distil.teachers': {'slow': 'student'},
      'distil.teacher_sync': {'slow': {'name': 'ema', 'decay': 0.5}},
      'distil.loss': {'imitate': {'objective': 'negative_log_likelihood'}},
      'distil.learning_rate': 1e-2,
    }
  )
  _, rows = train(built, tmp_path)
  for row in rows_of(rows):
    assert abs(row['sampler_logp'] - row['target_logp']) < 1e-5
  last = rows_of(rows)[-1]
  assert abs(last['sampler_logp'] - last['student_logp']) > 1e-3


# A checkpoint every two steps, at four updates. Kills: followers, moments or
# schedules that are not restored, and a resumed run that counts updates.
@pytest.mark.parametrize('stop', [1, 3])
def test_a_run_of_many_updates_resumes_with_the_same_bytes(
  everything, make_tiny, tmp_path, stop, train, interrupt, rewarded
):
  make = lambda: rewarded(make_tiny(**EVERYTHING))
  with pytest.raises(KeyboardInterrupt):
    train(interrupt(make(), 'distil', 2 * stop), tmp_path)
  summary, rows = train(make(), tmp_path)
  assert summary['params_sha256'] == everything[0]['params_sha256']
  assert rows == everything[1]


# Kills: an advantage of the other sign, of the batch, or of another row; and
# an anchor that is not what the tokens were sampled with.
def test_rewards_are_learnt(make_tiny, tmp_path, train, rows_of, rewarded):
  built = make_tiny(
    **{
      'stages': ('distil',),
      'distil.steps': 15,
      'distil.teachers': {},
      'distil.loss': {'grpo': GRPO},
      'distil.group_size': 8,
      'distil.num_minibatches': 2,
      'distil.learning_rate': 1e-2,
    }
  )
  _, rows = train(rewarded(built), tmp_path)
  rewards = [row['reward'] for row in rows_of(rows)]
  before, after = np.mean(rewards[:3]), np.mean(rewards[-3:])
  assert before + 0.2 < after
  assert all(row['frac_reward_zero_std'] < 0.5 for row in rows_of(rows))


# The first call and the last of a stage whose groups never differ. Kills: a
# line a step, none, and one where rewards differ.
def test_rewards_that_teach_nothing_are_warned_of_once(
  make_tiny, tmp_path, train, rows_of, rewarded, caplog
):
  def run(*reward, **options):
    caplog.clear()
    built = make_tiny(
      **{
        'stages': ('distil',),
        'distil.steps': 22,
        'distil.teachers': {},
        'distil.loss': {'grpo': GRPO},
        'distil.filter': 'nonzero_reward_std',
        **options,
      }
    )
    built = rewarded(built, *reward)
    workdir = tmp_path / str(len(list(tmp_path.iterdir())))
    summary, rows = train(built, workdir)
    before = pipeline.params_sha256(make_tiny().params['student'])
    warned = [line for line in caplog.messages if 'taught nothing' in line]
    return warned, summary['params_sha256'] == before, rows_of(rows)

  warned, stayed, rows = run(lambda response, example: 0.0)
  assert len(warned) == 1
  assert warned[0].startswith('distil: for 20 steps the rewards of each group')
  # Nothing was kept, so nothing was learnt, and nothing broke.
  assert stayed
  assert (
    {row['loss'] for row in rows}
    == {row['kept_fraction'] for row in rows}
    == {0.0}
  )
  warned, stayed, _ = run(**{'distil.steps': 20})
  assert warned == [] and not stayed


# Kills: a run that goes on with nothing, one that stops at the first fault, and
# an end that does not say where to look.
def test_updates_that_are_not_finite_stop_the_run(
  make_tiny, tmp_path, train, rows_of, caplog
):
  built = make_tiny(
    **{'stages': ('warm',), 'warm.steps': 4, 'warm.max_consecutive_skips': 3}
  )
  head = built.params['student']['layers']['mlp']['down']
  built.params['student']['layers']['mlp']['down'] = head.at[0, 1, 2].set(
    np.nan
  )
  with pytest.raises(NonFiniteLossError) as caught:
    train(built, tmp_path)
  assert str(caught.value).startswith(
    'warm: 3 updates in a row were skipped, the last one at step 3: loss is nan'
    '; the first that is not finite: parameters of student: layers.mlp.down.'
  )
  assert [line for line in caplog.messages if 'skipped' in line] == [
    f'warm: step {step}: an update was skipped: loss is nan' for step in (1, 2)
  ]
  rows = rows_of((tmp_path / 'metrics.jsonl').read_bytes())
  assert [row['skipped_updates'] for row in rows] == [1, 1, 1]
  # The rate is that of the first update, since none was made.
  assert len({row['learning_rate'] for row in rows}) == 1


def test_a_checkpoint_of_another_run_is_refused(
  make_tiny, tmp_path, train, interrupt
):
  with pytest.raises(KeyboardInterrupt):
    train(interrupt(make_tiny(), 'distil', 3), tmp_path)
  with pytest.raises(ValueError, match='was saved with seed = 0'):
    train(make_tiny(seed=1), tmp_path)


# Sizes of tests/tiny.py in other families: experts, windows, two bases.
FAMILIES = {
  'student': dict(
    tiny.SIZE,
    model_type='gemma3_text',
    num_key_value_heads=2,
    num_hidden_layers=2,
    sliding_window=8,
    layer_types=['sliding_attention', 'full_attention'],
  ),
  'teacher': dict(
    {k: v for k, v in tiny.SIZE.items() if k != 'intermediate_size'},
    model_type='qwen3_moe',
    num_key_value_heads=2,
    moe_intermediate_size=16,
    num_experts=4,
    num_experts_per_tok=2,
  ),
}


@pytest.mark.parametrize('learner', ['student', 'teacher'])
def test_families_learn_from_one_another(make_tiny, tmp_path, learner, train):
  # On a mesh with every axis, rollouts in eight bits. Kills: a family that can
  # be loaded but not placed, rounded, sampled from, trained or saved.
  other = {'student': 'teacher', 'teacher': 'student'}[learner]
  built = make_tiny(
    **{
      'models.student': FAMILIES[learner],
      'models.teacher': FAMILIES[other],
      'mesh.data': 2,
      'mesh.fsdp': 2,
      'mesh.tensor': 2,
      'stages': ('distil',),
      'distil.steps': 1,
      'distil.rollout_dtype': 'int8',
      'eval.prompts': 8,
    }
  )
  train(built, tmp_path)
  model, params = hf.load(tmp_path / 'distil' / 'model')
  assert model.config == built.run.models['student'].config
  assert model.config.family == FAMILIES[learner]['model_type']
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))


MIXED = {
  'stages': ('distil',),
  'distil.response_source': ('student', 'teacher', 'dataset'),
  'distil.group_size': 1,
  'distil.gradient_accumulation_steps': 1,
  'distil.teacher_contexts': {'teacher': {'name': 'with_answer'}},
  'distil.max_teacher_prompt_tokens': 96,
  'distil.teachers': {'teacher': 'student', 'judge': 'student'},
  'distil.loss': {
    'match': {
      'objective': 'divergence',
      'divergence': 'reverse_kl',
      'rows': 'student',
    },
    'prefer': {'objective': 'preference', 'beta': 0.1},
  },
  'distil.steps': 3,
  'eval.prompts': 8,
}
MIXED['distil.teacher_contexts']['judge'] = {'name': 'with_attempt'}
MIXED['distil.max_teacher_prompt_tokens'] = 128


# Kills: a writer whose rows are the student's, for its weights are; a teacher
# that writes from the student's prompt; draws or contexts that resuming loses.
def test_a_stage_of_several_writers_resumes(
  make_tiny, tmp_path, train, interrupt
):
  summary, rows = train(make_tiny(**MIXED), tmp_path / 'whole')
  logged = [json.loads(row) for row in rows.splitlines()]
  logged = [row for row in logged if row['kind'] == 'train']
  assert all(row['context_hit_rate/judge'] == 1 for row in logged)
  assert all(row['sampling/logp_difference'] < 1e-5 for row in logged)
  assert logged[0]['response_length/dataset'] < 16
  with pytest.raises(KeyboardInterrupt):
    train(interrupt(make_tiny(**MIXED), 'distil', 2), tmp_path)
  again, others = train(make_tiny(**MIXED), tmp_path)
  assert again['params_sha256'] == summary['params_sha256']
  assert others == rows


# Kills: a host that waits for an update before it dispatches the next rollout,
# and one that reads metrics before it must; what evaluations, checkpoints and
# the end must not overtake is in the tests of bytes.
def test_metrics_are_read_once_the_next_rollout_runs(
  make_tiny, train, tmp_path, monkeypatch
):
  events, call, write = [], Program.__call__, MetricsLog.write

  def called(self, *args):
    name = self.name.rpartition(': ')[2]
    if name in ('rollout', 'learner') and self.name.startswith('distil'):
      events.append(name)
    return call(self, *args)

  def wrote(self, stage, step, kind, values):
    if kind == 'train':
      events.append(f'metrics {step}')
    write(self, stage, step, kind, values)

  monkeypatch.setattr(Program, '__call__', called)
  monkeypatch.setattr(MetricsLog, 'write', wrote)
  settings = {'stages': ('distil',), 'distil.steps': 3, 'checkpoint.every': 99}
  train(make_tiny(**settings), tmp_path)
  assert events == [
    *('rollout', 'learner', 'rollout', 'metrics 1', 'learner'),
    *('rollout', 'metrics 2', 'learner', 'metrics 3'),
  ]
