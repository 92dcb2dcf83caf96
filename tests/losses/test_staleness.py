"""Weights of what an older student said."""

import jax.numpy as jnp
import numpy as np
import pytest

from jopd import losses

EMPTY = losses.TokenStats()


def _stats(student, sampler, lag, mask):
  lag = jnp.broadcast_to(jnp.asarray(lag, jnp.float32)[:, None], mask.shape)
  return EMPTY._replace(
    student_logp=jnp.log(student),
    sampler_logp=jnp.log(sampler),
    staleness=lag,
    mask=mask,
  )


RATIOS = np.array([[0.5, 2.0, 9.0], [1.0, 1.0, 1.0], [3.0, 0.25, 1.5]])
MASK = np.array([[1, 1, 0], [1, 1, 1], [1, 1, 1]], bool)
LAG = np.array([0.0, 0.0, 3.0])
STATS = _stats(jnp.asarray(0.1 * RATIOS), jnp.full((3, 3), 0.1), LAG, MASK)


# Kills masked tokens that count, a mean over all slots, the root of another
# estimate, and a lag that starts at one.
def test_freshness_by_the_definition():
  got = losses.freshness(STATS, alpha=0.7, least=0.05)
  for row in range(3):
    drifts = [
      r - 1 - np.log(r)
      for r, m in zip(RATIOS[row], MASK[row], strict=True)
      if m
    ]
    fresh = np.exp(-0.7 * np.sqrt(np.mean(drifts))) / (LAG[row] + 1)
    np.testing.assert_allclose(got[row], max(fresh - 0.05, 0), rtol=1e-4)


# On-policy it is plain OPD, to the last bit; what is too old is not learnt.
def test_freshness_of_what_is_fresh_is_one():
  np.testing.assert_array_equal(losses.freshness(STATS)[1], 1.0)
  old = STATS._replace(staleness=STATS.lag + 9)
  np.testing.assert_array_equal(losses.freshness(old, least=0.2), 0.0)


# Kills: products that take in what is masked, or leave out the token itself.
def test_prefix_importance_is_a_running_product():
  got = losses.prefix_importance(STATS, high=2.5)
  expected = [[0.5, 1.0, 1.0], [1.0, 1.0, 1.0], [2.5, 0.75, 1.125]]
  np.testing.assert_allclose(got, expected, rtol=1e-5)


# The mean over what mu says of weight * f is the mean over what p says of f,
# for a function of the whole prefix. Kills importance of the last token alone.
def test_prefix_importance_moves_the_prefix_too():
  p = np.array([[0.7, 0.3], [0.2, 0.8]])  # second token after 0, after 1
  mu = np.array([[0.5, 0.5], [0.6, 0.4]])
  first, was = np.array([0.1, 0.9]), np.array([0.4, 0.6])
  value = np.array([[1.0, 2.0], [5.0, 7.0]])
  wanted = np.sum(first[:, None] * p * value)
  found = 0.0
  for a in range(2):
    for b in range(2):
      own = jnp.log(jnp.array([[first[a], p[a, b]]]))
      old = jnp.log(jnp.array([[was[a], mu[a, b]]]))
      stats = EMPTY._replace(
        student_logp=own, sampler_logp=old, mask=jnp.ones((1, 2), bool)
      )
      weight = float(losses.prefix_importance(stats, high=100.0)[0, 1])
      found += was[a] * mu[a, b] * weight * value[a, b]
  np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize(
  ('call', 'said'),
  [
    (lambda: losses.freshness(STATS, alpha=-1.0), 'alpha must be in'),
    (lambda: losses.freshness(STATS, least=1.0), 'least must be in'),
    (lambda: losses.freshness(STATS._replace(staleness=None)), 'lag'),
    (lambda: losses.prefix_importance(STATS, high=0.0), 'high must be in'),
  ],
)
def test_what_cannot_be_meant_is_refused(call, said):
  with pytest.raises(ValueError, match=said):
    call()
