"""Rules that choose responses: by hand, and what each of them needs."""

from functools import partial

import numpy as np
import pytest

from jopd.rollout import select
from jopd.rollout.slots import BUDGET, LENGTH, STOP

# Three prompts: answered now and then, always, never.
REWARDS = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
LENGTHS = np.array([[3, 8], [8, 2], [1, 8]])
ENDS = np.array([[STOP, LENGTH], [BUDGET, STOP], [STOP, LENGTH]])


# Kills a rule by rows where a group is meant, or by groups where a row is, cut
# responses that count as finished, and a bound that is not inclusive.
@pytest.mark.parametrize(
  'rule, expected',
  [
    (select.every, [[1, 1], [1, 1], [1, 1]]),
    (select.mixed_rewards, [[1, 1], [0, 0], [0, 0]]),
    (select.finished, [[1, 0], [0, 1], [1, 0]]),
    (select.right, [[1, 0], [1, 1], [0, 0]]),
    (partial(select.right, least=0.0), [[1, 1], [1, 1], [1, 1]]),
    (
      partial(select.mixed_rewards, also=select.right),
      [[1, 0], [0, 0], [0, 0]],
    ),
    (partial(select.right, also=select.finished), [[1, 0], [0, 1], [0, 0]]),
  ],
)
def test_rules_by_hand(rule, expected):
  keep = rule(REWARDS, LENGTHS, ENDS)
  assert keep.dtype == bool
  np.testing.assert_array_equal(keep, np.array(expected, bool))


# Kills a rule that takes a reward it does not have for 0, so that a stage
# without answers would learn nothing and say nothing.
def test_a_rule_that_reads_rewards_fails_without_them():
  for rule in (select.every, select.finished):
    assert rule(None, LENGTHS, ENDS).shape == LENGTHS.shape
  finished_and_right = partial(select.finished, also=select.right)
  for rule in (select.mixed_rewards, select.right, finished_and_right):
    with pytest.raises((TypeError, ValueError)):
      rule(None, LENGTHS, ENDS)


# A group of one has no differences. Kills an exception from an empty batch.
def test_odd_shapes():
  one = np.ones((2, 1))
  assert not select.mixed_rewards(one, one, one).any()
  assert select.mixed_rewards(one[:0], one[:0], one[:0]).shape == (0, 1)
