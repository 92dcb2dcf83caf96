"""A run that changes its course by what it measures, and goes on with it."""

import json

import pytest

from jopd.train import pipeline

PACED = {
  'stages': ('distil',),
  'distil.steps': 6,
  'distil.held_out': 8,
  'distil.held_out_every': 2,
  'distil.weight_extrapolation': 'line_search',
  'distil.group_size': 1,
  'distil.gradient_accumulation_steps': 1,
  'distil.controllers': {
    'length': {'name': 'staged_curriculum', 'rungs': (3, 5, 9), 'least': 0.1},
    'pull': {
      'name': 'adaptive_kl',
      'start': 0.5,
      'of': 'reverse_kl',
      'aim': 1e-3,
    },
  },
  'distil.rollout': {
    'limit': {'controlled': 'length'},
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


def _train(built, workdir):
  summary = pipeline.train(built.run, built.stages, built.params, workdir)
  return summary, (workdir / 'metrics.jsonl').read_bytes()


@pytest.fixture(scope='module')
def controlled(make_tiny, tmp_path_factory):
  return _train(make_tiny(**PACED), tmp_path_factory.mktemp('controlled'))


# The random student's entropy is high, so that the gate is open; nobody stops.
# Kills: a limit that the sampler does not get, a rung before its measure, a
# coefficient that the learner does not see, held-out answers that are longer.
def test_a_stage_keeps_its_pace(controlled):
  rows = [json.loads(line) for line in controlled[1].splitlines()]
  train = [row for row in rows if row['kind'] == 'train']
  assert [row['pace/length'] for row in train] == [3, 3, 5, 5, 9, 9]
  longest = [row['response_length'] for row in train]
  assert all(
    a <= row['pace/length'] for a, row in zip(longest, train, strict=True)
  )
  assert longest[0] > 2 and longest[-1] > 5
  pulls = [row['pace/pull'] for row in train]
  assert pulls[0] == 0.5 and pulls[1] == pytest.approx(0.51)
  for row in train:
    both = row['pace/pull'] * row['loss/match']
    assert row['loss'] == pytest.approx(both, rel=1e-5)
  shown = [row for row in rows if row['kind'] == 'held_out']
  assert [row['step'] for row in shown] == [2, 4, 6]
  for row, rung in zip(shown, (3, 5, 9), strict=True):
    assert row['response_length'] <= rung
  looks = [row['step'] for row in rows if row['kind'] == 'foresight']
  assert looks == [1, 2, 4]
  # 384 tokens, nearly alike at first.
  assert 3 < shown[0]['entropy'] < 6


# Checkpoints are at even steps; the interruption follows an odd one. Kills:
# rungs and coefficients that a resumed run begins anew.
def test_an_interrupted_pace_goes_on(controlled, make_tiny, tmp_path):
  built = make_tiny(**PACED)
  [stage] = built.stages

  def rate(step):
    if step == 4:
      raise KeyboardInterrupt
    return stage.learning_rate(step)

  stopped = built._replace(stages=(stage._replace(learning_rate=rate),))
  with pytest.raises(KeyboardInterrupt):
    _train(stopped, tmp_path)
  summary, rows = _train(make_tiny(**PACED), tmp_path)
  assert summary['params_sha256'] == controlled[0]['params_sha256']
  assert rows == controlled[1]


@pytest.mark.parametrize(
  ('change', 'said'),
  [
    ({'distil.held_out': 64}, 'held_out = 64 leaves nothing of the 64'),
    ({'distil.held_out_every': 0, 'distil.held_out': 0}, 'foresight: it needs'),
    ({'distil.lora': {'rank': 2}}, 'only adapters are trained'),
    ({'distil.held_out': 0}, 'held_out_every = 2 needs prompts to measure'),
    ({'distil.held_out': 4}, '4 rows cannot be divided'),
    ({'distil.controllers': {}}, "rollout: pace has no 'length'"),
    (
      {'distil.rollout': {'limit': {'controlled': 'lenght'}}},
      "pace has no 'lenght'; did you mean 'length'",
    ),
    (
      {'distil.controllers': {'length': {'name': 'lader'}}},
      "pace.length: jopd.train.controllers has no 'lader'; did you mean 'staged_curriculum'",
    ),
    (
      {'distil.rollout': {'temperature': -1.0}},
      'rollout: temperature must be >= 0',
    ),
    ({'distil.rollout': {'limit': -1}}, 'limit must be at least 0, got -1'),
  ],
)
def test_a_pace_that_cannot_be_is_refused(make_tiny, change, said):
  with pytest.raises(ValueError, match=said):
    make_tiny(**PACED | change)
