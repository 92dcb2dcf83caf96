"""Callbacks: rules by hand, and runs that are changed by what they measure."""

import doctest
import json
import logging

import jax
import numpy as np
import optax
import pytest

from jopd import sharding
from jopd.train import callbacks
from jopd.train.callbacks import Callback, Setup, controllers
from jopd.train.callbacks.base import StepContext
from jopd.train.state import init_state

STATE = init_state({}, optax.sgd(0.1))


def setup(**changed):
  mesh = sharding.make_mesh(data=-1)
  return Setup('one', 'distil', 100, mesh, jax.random.key(1))._replace(
    **changed
  )


def after(callback, **metrics):
  """The scalar of a controller after a step with such metrics."""
  callback.after_step(StepContext(1, STATE, {}, [], lambda: metrics))
  return callback.scalars()['one']


# Kills: a curriculum that climbs at each step, that climbs beyond its end, or
# that falls when the gate is shut.
def test_a_curriculum_climbs_only_when_enough_was_measured():
  climb = callbacks.staged_curriculum(
    setup(), rungs=(4, 8, 16), threshold=0.5, metric='h'
  )
  rows = [{}, {}, {'h': 0.5}, {'h': 0.4}, {}, {'h': 0.6}, {'h': 0.9}]
  assert [after(climb, **row) for row in rows] == [4, 4, 8, 8, 8, 16, 16]


# Kills: a controller of the wrong sign, one without a bound, and a scalar that
# a broken step moves, or makes NaN for ever.
def test_a_factor_grows_while_the_metric_is_above_its_target():
  def move(**metrics):
    settings = dict(init_value=1.0, metric='kl', target=0.2, gain=0.5, clip=0.4)
    return after(callbacks.adaptive_kl(setup(), **settings), **metrics)

  assert move(kl=0.22) == pytest.approx(1.05)
  assert move(kl=0.18) == pytest.approx(0.95)
  assert move(kl=9.0) == pytest.approx(1.2)
  assert move(kl=0.0) == pytest.approx(0.8)
  assert move() == move(kl=float('nan')) == move(kl=float('inf')) == 1.0


def turns(callback, steps):
  """(the batches that each step makes, the one that it learns), in order."""
  made, found = 0, []
  for step in range(steps):
    turn = callback.turn(step, made)
    found.append((list(range(made, turn.made)), turn.learn))
    assert turn.learn < turn.made
    made = turn.made
  return found


# Kills: a queue that is one short, or learns the newest.
def test_a_fixed_staleness_fills_its_queue_once():
  stale = callbacks.fixed_staleness(setup(), staleness=2)
  assert turns(stale, 3) == [([0, 1, 2], 0), ([3], 1), ([4], 2)]
  fresh = callbacks.fixed_staleness(setup(), staleness=0)
  assert turns(fresh, 3) == [([0], 0), ([1], 1), ([2], 2)]
  assert stale.off_policy and not fresh.off_policy


# Kills: an old batch that was forgotten, one that can never be drawn, and a
# share that is not the chance of new ones; draws that are not of the step.
def test_a_buffer_draws_of_what_it_keeps():
  buffer = callbacks.replay_buffer(setup(steps=4000), size=4, fresh=0.25)
  made, new, ages = 0, 0, []
  for step in range(4000):
    turn = buffer.turn(step, made)
    assert turn == buffer.turn(step, made)
    assert turn.keep <= turn.learn < turn.made <= turn.keep + 4
    new += turn.made - made
    if turn.made == made:
      ages.append(made - 1 - turn.learn)
    made = turn.made
  assert abs(new / 4000 - 0.25) < 0.03
  np.testing.assert_allclose(np.bincount(ages[100:]) / 2900, 0.25, atol=0.03)


# Kills: a schedule that is read once.
def test_the_share_of_new_responses_may_be_a_schedule():
  falling = lambda step: 1.0 if step < 3 else 1e-9
  buffer = callbacks.replay_buffer(setup(steps=6), size=2, fresh=falling)
  assert [bool(new) for new, _ in turns(buffer, 6)] == [True] * 3 + [False] * 3


@pytest.mark.parametrize(
  ('make', 'settings', 'message'),
  [
    ('staged_curriculum', dict(rungs=(), threshold=0.0), 'rungs is empty'),
    (
      'adaptive_kl',
      dict(init_value=1.0, metric='kl', target=0.0),
      'target must be above 0, got 0',
    ),
    ('fixed_staleness', dict(staleness=-1), 'staleness must be at least 0'),
    ('replay_buffer', dict(size=2, fresh=0.0), 'fresh in'),
    ('replay_buffer', dict(size=0, fresh=0.5), 'size must be at least 1'),
    ('measure_held_out', dict(every=0), 'every must be at least 1'),
    ('measure_held_out', dict(every=2), 'set held_out'),
    ('log_samples', dict(every=1, count=0), 'count must be at least 1'),
  ],
)
def test_settings_out_of_range_are_refused(make, settings, message):
  with pytest.raises(ValueError, match=message):
    getattr(callbacks, make)(setup(), **settings)


CONTROLLED = {
  'stages': ('distil',),
  'distil.steps': 6,
  'distil.held_out': 8,
  'distil.group_size': 1,
  'distil.gradient_accumulation_steps': 1,
  'distil.callbacks': {
    'measure': {'name': 'measure_held_out', 'every': 2},
    'extrapolation': {'name': 'jopd.papers.effopd:extrapolate_weights'},
    'length': {
      'name': 'staged_curriculum',
      'rungs': (3, 5, 9),
      'threshold': 0.1,
    },
    'pull': {
      'name': 'adaptive_kl',
      'init_value': 0.5,
      'metric': 'reverse_kl',
      'target': 1e-3,
    },
    'samples': {'name': 'log_samples', 'every': 2, 'count': 3},
  },
  'distil.rollout': {
    'max_new_tokens': {'controlled': 'length'},
    'temperature': {
      'schedule': 'linear_schedule',
      'init_value': 1.0,
      'end_value': 0.5,
      'transition_steps': 5,
    },
  },
  'distil.loss': {
    'match': {
      'objective': 'divergence',
      'divergence': 'reverse_kl',
      'coef': {'controlled': 'pull'},
    }
  },
}


@pytest.fixture(scope='module')
def controlled(make_tiny, train, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('controlled')
  return *train(make_tiny(**CONTROLLED), workdir), workdir


# The random student's entropy is high, so that the gate is open; nobody stops.
# Kills: a limit that the sampler does not get, a rung before its measure, a
# coefficient that the learner does not see, held-out responses that are longer.
def test_a_stage_follows_its_controllers(controlled, rows_of):
  train = rows_of(controlled[1])
  assert [row['controller/length'] for row in train] == [3, 3, 5, 5, 9, 9]
  longest = [row['response_length'] for row in train]
  assert all(
    a <= row['controller/length'] for a, row in zip(longest, train, strict=True)
  )
  assert longest[0] > 2 and longest[-1] > 5
  pulls = [row['controller/pull'] for row in train]
  assert pulls[0] == 0.5 and pulls[1] == pytest.approx(0.51)
  for row in train:
    both = row['controller/pull'] * row['loss/match']
    assert row['loss'] == pytest.approx(both, rel=1e-5)
  shown = [row for row in train if 'held_out/reward' in row]
  assert [row['step'] for row in shown] == [2, 4, 6]
  for row, rung in zip(shown, (3, 5, 9), strict=True):
    assert row['held_out/response_length'] <= rung
  looks = [row['step'] for row in train if 'extrapolation/tries' in row]
  assert looks == [1, 2, 4]
  # 384 tokens, nearly alike at first.
  assert 3 < shown[0]['held_out/entropy'] < 6


def test_samples_are_written_for_people(controlled):
  lines = (controlled[2] / 'samples.jsonl').read_text().splitlines()
  rows = list(map(json.loads, lines))
  assert [row['step'] for row in rows] == [1, 1, 1, 3, 3, 3, 5, 5, 5]
  for row in rows:
    assert row['prompt'].startswith('user: ')
    assert row['source'] == 'student' and row['reward'] in (0.0, 1.0)
    assert 0 <= row['response_length'] <= 9


# Checkpoints are at even steps; the interruption follows an odd one. Kills:
# rungs, coefficients and origins that a resumed run begins anew, and samples
# that are written twice.
def test_an_interrupted_run_goes_on_with_its_callbacks(
  controlled, make_tiny, train, interrupt, tmp_path, caplog
):
  with pytest.raises(KeyboardInterrupt):
    train(interrupt(make_tiny(**CONTROLLED), 'distil', 4), tmp_path)
  caplog.clear()
  with caplog.at_level(logging.INFO, 'jopd'):
    summary, rows = train(make_tiny(**CONTROLLED), tmp_path)
  # Schedules and controlled scalars are arguments: nothing is traced again.
  compiled = [x for x in caplog.messages if 'compiled distil: learner' in x]
  assert len(compiled) == 1
  assert summary['params_sha256'] == controlled[0]['params_sha256']
  assert rows == controlled[1]
  samples = [
    (folder / 'samples.jsonl').read_text()
    for folder in (tmp_path, controlled[2])
  ]
  assert samples[0] == samples[1]


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'distil.held_out': 64}, 'held_out = 64 leaves none of the 64'),
    ({'distil.held_out': 0}, 'callbacks.extrapolation: .*set held_out'),
    ({'distil.lora': {'rank': 2}}, 'only adapters are trained'),
    ({'distil.held_out': 4}, '4 rows cannot be divided'),
    ({'distil.callbacks': {}}, "no .*'length'"),
    (
      {'distil.callbacks': {'length': {'name': 'staged_curiculum'}}},
      "callbacks.length: .*did you mean 'staged_curriculum'",
    ),
    (
      {'distil.rollout': {'temperature': -1.0}},
      'rollout: temperature must be >= 0',
    ),
  ],
)
def test_callbacks_that_cannot_be_meant_are_refused(make_tiny, change, message):
  with pytest.raises(ValueError, match=message):
    make_tiny(**CONTROLLED | change)


STALE = {
  'stages': ('distil',),
  'distil.steps': 4,
  'distil.group_size': 1,
  'distil.gradient_accumulation_steps': 1,
  'distil.callbacks': {'queue': {'name': 'fixed_staleness', 'staleness': 2}},
  'distil.learning_rate': 1e-2,
  'distil.loss': {
    'match': {
      'objective': 'divergence',
      'divergence': 'reverse_kl',
      'weight': {'name': 'jopd.papers.f_opd:freshness', 'alpha': 0.5},
    }
  },
}


# What the student wrote long ago is no longer what it would write. Kills: a
# staleness that is not counted, responses that are sampled when they are
# learnt, and a checkpoint without what waits.
def test_responses_wait_their_turn_and_resume(
  make_tiny, train, interrupt, rows_of, tmp_path
):
  summary, log = train(make_tiny(**STALE), tmp_path / 'whole')
  rows = rows_of(log)
  assert [row['staleness'] for row in rows] == [0, 1, 2, 2]
  difference = [row['sampling/logp_difference'] for row in rows]
  assert difference[0] < 1e-5 < 1e-3 < difference[2]
  assert rows[0]['ess'] == pytest.approx(1, abs=1e-4)
  assert 0 < rows[2]['ess'] < 0.9999
  # The queue is filled at first; the last steps sample nothing.
  assert ['reward' in row for row in rows] == [True, True, False, False]
  with pytest.raises(KeyboardInterrupt):
    train(interrupt(make_tiny(**STALE), 'distil', 2), tmp_path / 'cut')
  assert (tmp_path / 'cut/distil/checkpoints/2/arrays').is_dir()
  again, same = train(make_tiny(**STALE), tmp_path / 'cut')
  assert again['params_sha256'] == summary['params_sha256']
  assert same == log


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (
      {'distil.response_source': 'dataset'},
      'callbacks.queue: responses of a dataset have no staleness',
    ),
    (
      {
        'distil.loss': {
          'a': {'objective': 'policy_gradient', 'surrogate': 'reinforce'}
        }
      },
      'responses are of an older student',
    ),
  ],
)
def test_stale_responses_that_cannot_be_learnt_are_refused(
  make_tiny, change, message
):
  with pytest.raises(ValueError, match=message):
    make_tiny(**STALE | change)


def count_steps(setup, *, stop=10**9):
  """A callback of one's own, named in a config as a function."""

  class Count(Callback):
    steps = 0

    def after_step(self, context):
      self.steps += 1
      context.metrics['counted'] = float(self.steps)

    def get_state(self):
      return {'steps': self.steps}

    def restore(self, state, arrays):
      self.steps = state['steps']

  return Count()


# Kills: a state that is not restored, metrics that are written before a
# callback adds to them.
def test_a_callback_of_ones_own_keeps_its_state(
  make_tiny, train, interrupt, rows_of, tmp_path
):
  settings = {
    'stages': ('distil',),
    'distil.steps': 3,
    'distil.callbacks': {'mine': count_steps},
  }
  with pytest.raises(KeyboardInterrupt):
    train(interrupt(make_tiny(**settings), 'distil', 2), tmp_path)
  _, log = train(make_tiny(**settings), tmp_path)
  assert [row['counted'] for row in rows_of(log)] == [1, 2, 3]


def test_examples_print_what_they_show():
  assert doctest.testmod(controllers).failed == 0
