"""The batch of responses: groups of several sources, metrics, files."""

import jax
import numpy as np

from jopd.losses import Row
from jopd.rewards import Response, Reward
from jopd.rollout.continuous_batching import LENGTH, STOP
from jopd.train.metrics import means
from jopd.train.rollout_batch import (
  RolloutBatch,
  RolloutInfo,
  TeacherInput,
  from_dict,
  interleave,
  rollout_metrics,
  to_dict,
)

WRITERS = ('student', 'teacher', 'student', 'dataset')


# Two prompts, 10s and 20s. Kills rows in the order of their sources.
def test_groups_are_in_the_order_of_their_writers():
  parts = dict(student=[10, 12, 20, 22], teacher=[11, 21], dataset=[13, 23])
  parts = {n: dict(number=np.array(x)) for n, x in parts.items()}
  np.testing.assert_array_equal(
    interleave(WRITERS, parts)['number'], [10, 11, 12, 13, 20, 21, 22, 23]
  )
  alone = dict(student=dict(number=np.arange(6).reshape(6, 1)))
  np.testing.assert_array_equal(
    interleave(('student',) * 3, alone)['number'], alone['student']['number']
  )


def batch(rows=8, **fields):
  """Responses of one token; every odd one is cut off."""
  number = np.arange(rows, dtype=np.int32)
  one = np.ones(rows, np.int32)
  column = number[:, None]
  end = np.where(number % 2, LENGTH, STOP)
  return RolloutBatch(
    column, one, column, one, column > -1, end, Row(group=number), **fields
  )


def test_metrics_are_by_source():
  rewards = [1, 0, 1, 1, 0, 1, 0.5, 1]
  info = RolloutInfo(
    WRITERS,
    slot_steps=8,
    responses=[Response('x')] * 8,
    rewards=[Reward(x, judged=i > 0) for i, x in enumerate(rewards)],
    kept=np.array([[1, 1, 0, 1], [1, 1, 1, 1]], bool),
    has_context={'own': np.array([True, False])},
  )
  sources = ['student', 'teacher', 'dataset']
  assert means(rollout_metrics(batch(), info, sources)) == {
    'response_length': 1.0,
    'reward': 0.625,
    'completions/clipped_ratio': 0.0,
    'kept_fraction': 0.75,
    'response_length/teacher': 1.0,
    'reward/teacher': 0.5,
    'completions/clipped_ratio/teacher': 1.0,
    'kept_fraction/teacher': 1.0,
    'response_length/dataset': 1.0,
    'frac_reward_zero_std': 0.0,
    'reward_timeouts': 0.125,
    'context_hit_rate/own': 0.5,
    'slot_occupancy': 6 / 8,
  }


# Kills: optional fields that are lost, or come back as arrays.
def test_a_batch_survives_as_a_dictionary():
  ids = np.zeros((8, 3), np.int32)
  teacher = TeacherInput(ids, np.ones(8, np.int32))
  whole = batch(teachers={'judge': teacher}, rollout_logp=np.ones((8, 1)))
  again = from_dict(to_dict(whole))
  assert jax.tree.structure(again) == jax.tree.structure(whole)
  jax.tree.map(np.testing.assert_array_equal, again, whole)
