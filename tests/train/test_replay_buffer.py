"""Which responses a step learns from, by hand; and a run in which they wait."""

import doctest
import json

import jax
import numpy as np
import pytest

from jopd import sharding
from jopd.train import pipeline, replay_buffer


def test_examples_print_what_they_say():
  assert doctest.testmod(replay_buffer).failed == 0


def _follow(rule, steps, draws=(0.0, 0.0)):
  """(the batches that each step makes, the one that it learns), in order."""
  made, found = 0, []
  for step in range(steps):
    turn = rule(step, made, draws)
    found.append((list(range(made, turn.made)), turn.learn))
    assert turn.learn < turn.made
    made = turn.made
  return found


# Kills: a queue that is one short, or learns the newest.
def test_a_fixed_lag_fills_its_queue_once():
  rule = lambda *args: replay_buffer.fixed_staleness(*args, lag=2)
  assert _follow(rule, 3) == [([0, 1, 2], 0), ([3], 1), ([4], 2)]
  on_policy = lambda *args: replay_buffer.fixed_staleness(*args, lag=0)
  assert _follow(on_policy, 3) == [([0], 0), ([1], 1), ([2], 2)]


# Kills: an old batch that was forgotten, one that can never be drawn, and a
# share that is not the chance of new ones.
def test_a_buffer_draws_of_what_it_keeps():
  rng, made, new, ages = np.random.default_rng(0), 0, 0, []
  for step in range(4000):
    draws = rng.random(2).tolist()
    turn = replay_buffer.buffer(step, made, draws, size=4, fresh=0.25)
    assert turn.keep <= turn.learn < turn.made <= turn.keep + 4
    new += turn.made - made
    if turn.made == made:
      ages.append(made - 1 - turn.learn)
    made = turn.made
  assert abs(new / 4000 - 0.25) < 0.03
  np.testing.assert_allclose(np.bincount(ages[100:]) / 2900, 0.25, atol=0.03)


def test_what_cannot_be_meant_is_refused():
  with pytest.raises(ValueError, match='lag must be at least 0'):
    replay_buffer.fixed_staleness(0, 0, (), lag=-1)
  with pytest.raises(ValueError, match='fresh in'):
    replay_buffer.buffer(0, 0, (), size=2, fresh=0.0)


LAGGED = {
  'stages': ('distil',),
  'distil.steps': 4,
  'distil.group_size': 1,
  'distil.gradient_accumulation_steps': 1,
  'distil.replay': {'name': 'fixed_staleness', 'lag': 2},
  'distil.learning_rate': 1e-2,
  'distil.loss': {
    'match': {
      'objective': 'divergence',
      'divergence': 'reverse_kl',
      'weight': {'name': 'jopd.papers.f_opd:freshness', 'alpha': 0.5},
    }
  },
}


def _train(built, workdir):
  summary = pipeline.train(built.run, built.stages, built.params, workdir)
  return summary, (workdir / 'metrics.jsonl').read_bytes()


# What the student said of old is no longer what it would say. Kills: a lag that
# nobody counts, and responses that are sampled when they are learnt.
def test_responses_wait_their_turn_and_resume(make_tiny, tmp_path):
  summary, rows = _train(make_tiny(**LAGGED), tmp_path / 'whole')
  train = [json.loads(line) for line in rows.splitlines()]
  train = [row for row in train if row['kind'] == 'train']
  assert [row['lag'] for row in train] == [0, 1, 2, 2]
  assert train[0]['mismatch'] < 1e-5 < 1e-3 < train[2]['mismatch']
  assert train[0]['ess'] == pytest.approx(1, abs=1e-4)
  assert 0 < train[2]['ess'] < 0.9999
  # The queue is filled at first; the last steps sample nothing.
  assert ['reward' in row for row in train] == [True, True, False, False]

  # The checkpoint at step 2 holds what waits. Kills: one that does not.
  [stage] = (built := make_tiny(**LAGGED)).stages

  def rate(step):
    if step == 2:
      raise KeyboardInterrupt
    return stage.learning_rate(step)

  stopped = built._replace(stages=(stage._replace(learning_rate=rate),))
  with pytest.raises(KeyboardInterrupt):
    _train(stopped, tmp_path / 'cut')
  assert (tmp_path / 'cut/distil/checkpoints/2/pending').is_dir()
  again, same = _train(make_tiny(**LAGGED), tmp_path / 'cut')
  assert again['params_sha256'] == summary['params_sha256']
  assert same == rows


# Kills: draws that depend on what was drawn before, not on the step.
def test_draws_are_of_the_step():
  drawn = []

  def rule(step, controlled):
    return lambda step, made, draws: (
      drawn.append(tuple(draws)) or replay_buffer.Turn(made + 1, made, made + 1)
    )

  for steps in ((0, 1), (1,)):
    one = replay_buffer.Replay(
      rule, jax.random.key(1), 9, sharding.make_mesh(data=-1)
    )
    for step in steps:
      one.begin(step, {})
  assert drawn[1] == drawn[2] != drawn[0]


@pytest.mark.parametrize(
  ('change', 'said'),
  [
    (
      {'distil.response_source': 'dataset'},
      'replay: responses of a dataset have no age',
    ),
    (
      {
        'distil.loss': {
          'a': {'objective': 'policy_gradient', 'surrogate': 'reinforce'}
        }
      },
      'with replay responses are of an older student',
    ),
    (
      {'distil.replay': {'name': 'buffer', 'size': 0, 'fresh': 0.5}},
      'size must',
    ),
  ],
)
def test_a_replay_that_cannot_be_is_refused(make_tiny, change, said):
  with pytest.raises(ValueError, match=said):
    make_tiny(**LAGGED | change)
