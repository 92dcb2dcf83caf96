"""Teachers that follow: against float64 loops, and their settings."""

import jax.numpy as jnp
import numpy as np
import pytest

from jopd.train import teacher_sync

STUDENTS = np.random.default_rng(0).normal(size=(12, 3))


# Kills a decay that is its complement, and an average that starts at 0.
def test_the_average_equals_the_loop():
  own, expected = jnp.ones(3), np.ones(3)
  for step, student in enumerate(STUDENTS, start=1):
    own = teacher_sync.ema(own, jnp.float32(student), step, decay=0.9)
    expected = 0.9 * expected + 0.1 * student
  np.testing.assert_allclose(own, expected, rtol=1e-5, atol=1e-6)


# Kills rounding that moves a follower which has nothing to follow.
def test_what_agrees_stays_to_the_last_bit():
  same = jnp.float32(STUDENTS)
  own = same
  for step in range(50):
    own = teacher_sync.ema(own, same, step, decay=0.99)
  np.testing.assert_array_equal(own, same)


# Kills a period that is off by one, or that counts from the last change.
def test_a_snapshot_changes_at_multiples_only():
  own = jnp.zeros(3)
  for step, student in enumerate(jnp.float32(STUDENTS), start=1):
    own = teacher_sync.periodic(own, student, jnp.int32(step), every=4)
    taken = step // 4 * 4
    expected = np.float32(STUDENTS[taken - 1]) if taken else np.zeros(3)
    np.testing.assert_array_equal(own, expected)


def test_settings_out_of_range_are_refused():
  one = jnp.ones(1)
  with pytest.raises(ValueError, match=r'decay must be in \[0, 1\], got 1.5'):
    teacher_sync.ema(one, one, 1, decay=1.5)
  with pytest.raises(ValueError, match='every must be at least 1, got 0'):
    teacher_sync.periodic(one, one, 1, every=0)
