"""Responses of several sources: their order, their numbers, what is known."""

import numpy as np
import pytest
import tiny

from jopd.rollout.continuous_batching import LENGTH, STOP
from jopd.run import build
from jopd.run import config as configs
from jopd.train.metrics import means
from jopd.train.rollout_batch import Answers, Grades, in_groups, measured
from jopd.train.steps import Frozen, Phases

MEMBERS = ('student', 'teacher', 'student', 'dataset')


def said(numbers, *, steps=0):
  """Responses of one token, its number; every odd one is cut off."""
  numbers = np.array(numbers, np.int32)
  end = np.where(numbers % 2, LENGTH, STOP)
  nothing = np.zeros((len(numbers), 1), np.float32)
  length = np.ones_like(numbers)
  return numbers[:, None], length, nothing, nothing, end, np.int32(steps)


# Two prompts, 10s and 20s. Kills rows in the order of their sources.
def test_groups_are_in_the_order_of_their_members():
  answers = in_groups(
    MEMBERS,
    dict(
      student=said([10, 12, 20, 22], steps=6),
      teacher=said([11, 21], steps=2),
      dataset=said([13, 23]),
    ),
  )
  expected = [10, 11, 12, 13, 20, 21, 22, 23]
  np.testing.assert_array_equal(answers.response[:, 0], expected)
  assert answers.slot_steps == 8 and answers.members == MEMBERS
  rewards = np.array([[1, 0, 1, 1], [0, 1, 0.5, 1]], np.float32)
  keep = np.array([[1, 1, 0, 1], [1, 1, 1, 1]], bool)
  row = means(
    measured(
      answers,
      Grades(rewards, keep, {'own': (None, None, np.array([True, False]))}, 1),
      ['student', 'teacher', 'dataset'],
    )
  )
  assert row == {
    'response_length': 1.0,
    'reward': 0.625,
    'truncated': 0.0,
    'kept': 0.75,
    'response_length/teacher': 1.0,
    'reward/teacher': 0.5,
    'truncated/teacher': 1.0,
    'kept/teacher': 1.0,
    'response_length/dataset': 1.0,
    'mixed_groups': 1.0,
    'reward_timeouts': 0.125,
    'told/own': 0.5,
  }


TERMS = dict(
  match=dict(objective='divergence', divergence='reverse_kl', on='student'),
  prefer=dict(objective='preference', beta=0.1, on=('student', 'teacher')),
  imitate=dict(objective='negative_log_likelihood', on=('dataset', 'sums')),
)

THEIRS = dict(on='teacher')
PREFER = dict(prefer=dict(objective='preference', beta=0.1))


def mixed(**settings):
  config = tiny.get_config()
  config.stages = ('distil',)
  sums, count = dict(name='running_sum', count=32), dict(count=32)
  parts = dict(sums=sums, rules=dict(name='shift') | count)
  config.distil = configs.stage(
    **dict(
      teachers=dict(teacher='teacher'),
      source=MEMBERS,
      data=dict(name='blend', parts=parts),
      terms=TERMS,
      batch_size=8,
      updates=2,
    )
    | settings
  )
  return config


# Kills origins, groups or domains in another order than the rows, and
# demonstrations that are not those of the prompts.
def test_each_row_knows_where_it_is_from():
  run, [stage], _ = build.build(mixed())
  run = run._replace(grade=lambda text, example: 0.5)
  assert stage.rollouts.sources == dict(student=2, teacher=1, dataset=1)
  assert stage.prompts.domains == ('sums',) and stage.rollouts.mixed
  prompts = next(stage.prompts.batches)
  phases = Phases(stage, run, Frozen(None, {}), None)
  steps = run.max_new_tokens
  source = lambda first, n: (
    np.full((n, steps), first, np.int32),
    np.full(n, 3, np.int32),
    *[np.zeros((n, steps), np.float32)] * 2,
    np.full(n, STOP),
    np.int32(0),
  )
  nothing = source(0, 8)
  dataset = prompts.response, prompts.response_length, *nothing[2:]
  answers = in_groups(
    MEMBERS,
    dict(student=source(5, 16), teacher=source(6, 8), dataset=dataset),
  )
  batches = phases.pack(prompts, answers, phases.grade(prompts, answers))
  for i, batch in enumerate(batches):
    groups = np.arange(8)[i::2]
    rows = batch.row
    np.testing.assert_array_equal(rows.origin, [0, 1, 0, 2] * 4)
    np.testing.assert_array_equal(rows.group, np.repeat(groups, 4))
    sums = [0 if prompts.examples[g].domain == 'sums' else -1 for g in groups]
    np.testing.assert_array_equal(rows.domain, np.repeat(sums, 4))
    np.testing.assert_array_equal(batch.response[1::4, 0], 6)
    theirs = np.asarray(batch.response)[3::4]
    width = theirs.shape[1]
    np.testing.assert_array_equal(theirs, prompts.response[groups, :width])
    np.testing.assert_array_equal(
      batch.mask.sum(axis=1)[3::4], prompts.response_length[groups]
    )


@pytest.mark.parametrize(
  'settings, part',
  [
    (dict(terms=TERMS | dict(x=TERMS['match'] | dict(on='sum'))), "'sum', whi"),
    (
      dict(source=MEMBERS[2:], terms=dict(match=TERMS['match'] | THEIRS)),
      "on names 'teacher', which is no source of the stage's responses",
    ),
    (dict(source='student', batch_size=16, terms=PREFER), 'none to compare'),
    (dict(batch_size=8, micro_batches=3, updates=1), 'into 3 micro_batches'),
    (dict(batch_size=4, updates=1), "source 'teacher': a batch of 4 rows"),
  ],
)  # fmt: skip
def test_stages_whose_rows_do_not_fit_are_refused(monkeypatch, settings, part):
  monkeypatch.setattr(build, '_params', lambda *_: {})
  with pytest.raises(ValueError, match=r'config\.distil: ') as error:
    build.build(mixed(**settings))
  assert part in str(error.value)


# Kills a Row that is not Answers of one source.
def test_one_source_is_left_as_it_is():
  own = said([1, 2])
  answers = in_groups(('student',), dict(student=own))
  assert answers == Answers(*own, members=('student',))
