"""Rules that choose responses: by hand, and what each of them needs."""

from functools import partial

import numpy as np
import pytest

from jopd.rollout.continuous_batching import LENGTH, STOP
from jopd.train import filters

# Three prompts: answered now and then, always, never.
REWARDS = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
LENGTHS = np.array([[3, 8], [8, 2], [1, 8]])
ENDS = np.array([[STOP, LENGTH], [LENGTH, STOP], [STOP, LENGTH]])


# Kills a rule by rows where a group is meant, or by groups where a row is, cut
# responses that count as finished, and a bound that is not inclusive.
@pytest.mark.parametrize(
  'rule, expected',
  [
    (filters.keep_all, [[1, 1], [1, 1], [1, 1]]),
    (filters.nonzero_reward_std, [[1, 1], [0, 0], [0, 0]]),
    (filters.not_truncated, [[1, 0], [0, 1], [1, 0]]),
    (filters.min_reward, [[1, 0], [1, 1], [0, 0]]),
    (partial(filters.min_reward, least=0.0), [[1, 1], [1, 1], [1, 1]]),
    (
      partial(filters.nonzero_reward_std, also=filters.min_reward),
      [[1, 0], [0, 0], [0, 0]],
    ),
    (
      partial(filters.min_reward, also=filters.not_truncated),
      [[1, 0], [0, 1], [0, 0]],
    ),
  ],
)
def test_rules_by_hand(rule, expected):
  keep = rule(REWARDS, LENGTHS, ENDS)
  assert keep.dtype == bool
  np.testing.assert_array_equal(keep, np.array(expected, bool))


# Kills a rule that takes a reward it does not have for 0, so that a stage
# without answers would learn nothing and say nothing.
def test_a_rule_that_reads_rewards_fails_without_them():
  for rule in (filters.keep_all, filters.not_truncated):
    assert rule(None, LENGTHS, ENDS).shape == LENGTHS.shape
  finished_and_right = partial(filters.not_truncated, also=filters.min_reward)
  for rule in (
    filters.nonzero_reward_std,
    filters.min_reward,
    finished_and_right,
  ):
    with pytest.raises((TypeError, ValueError)):
      rule(None, LENGTHS, ENDS)


# A group of one has no differences. Kills an exception from an empty batch.
def test_odd_shapes():
  one = np.ones((2, 1))
  assert not filters.nonzero_reward_std(one, one, one).any()
  assert filters.nonzero_reward_std(one[:0], one[:0], one[:0]).shape == (0, 1)
