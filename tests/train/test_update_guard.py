"""Which updates are made: by hand, over a window of norms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jopd.train.update_guard import WINDOW, init_guard, judge, keep_if


def _after(norms, *, spike, loss=1.0):
  """What was decided on each of a row of norms."""
  guard, made = init_guard(), []
  one = jax.jit(lambda guard, norm: judge(guard, loss, norm, spike=spike))
  for norm in norms:
    fine, guard = one(guard, jnp.float32(norm))
    made.append(bool(fine))
  return made, guard


@pytest.mark.parametrize('loss', [np.nan, np.inf, -np.inf])
def test_a_loss_that_is_not_finite_is_not_learnt(loss):
  made, guard = _after([1.0, 1.0], spike=0.0, loss=loss)
  assert made == [False, False]
  assert (int(guard.skipped), int(guard.in_a_row)) == (2, 2)
  assert np.isnan(guard.norms).all()


# Kills: a count that is never reset, and one of the row in the place of all.
def test_skipped_updates_are_counted_in_all_and_in_a_row():
  made, guard = _after([1, np.nan, np.inf, 2, np.nan], spike=0.0)
  assert made == [True, False, False, True, False]
  assert (int(guard.skipped), int(guard.in_a_row)) == (3, 1)
  np.testing.assert_array_equal(guard.norms[-3:], [np.nan, 1, 2])


# 1..32 have the median 16.5: three times that is 49.5. Kills: a mean, 16.5 too,
# but not once 49 has taken the place of 1: then the median is 17.5, thrice
# 52.5, and the mean 18, thrice 54. And spikes or zeros that enter the window:
# with 52 in the place of 2 the median is 18.5, thrice 55.5.
def test_a_spike_is_far_above_the_median():
  usual = list(range(1, WINDOW + 1))
  made, guard = _after([*usual, 50, 49, 53, 52, 0, 56], spike=3.0)
  assert made[WINDOW:] == [False, True, False, True, True, False]
  assert int(guard.skipped) == 3
  np.testing.assert_array_equal(guard.norms[-2:], [49, 52])


def test_nothing_is_a_spike_before_it_is_known_what_is_usual():
  usual = [1.0] * (WINDOW - 1)
  assert _after([*usual, 1e6], spike=2.0)[0][-1]
  assert not _after([1.0, *usual, 1e6], spike=2.0)[0][-1]
  assert _after([1.0, *usual, 1e6], spike=0.0)[0][-1]


# Kills: an average of old and new, which is NaN with either.
def test_what_is_kept_is_kept_to_the_last_bit():
  old, new = {'a': jnp.array([1.0, jnp.nan])}, {'a': jnp.array([jnp.nan, 2.0])}
  np.testing.assert_array_equal(
    keep_if(jnp.array(True), new, old)['a'], new['a']
  )
  np.testing.assert_array_equal(
    keep_if(jnp.array(False), new, old)['a'], old['a']
  )
