"""Supports: what is kept, the tail's fate, and the bias of truncation."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from jopd import losses
from jopd.losses.distributions import GROUP, top_indices

TAILS = ('drop', 'renormalize', 'bucket')
SIDES = ('student', 'target')


def pair(seed=0, vocab=12, scale=1.5):
  rng = np.random.default_rng(seed)
  return rng.normal(size=vocab) * scale, rng.normal(size=vocab) * scale


@functools.partial(jax.jit, static_argnames=('divergence', 'k', 'of', 'tail'))
def _value_and_grad(divergence, student, target, **top_k):
  def loss(logits):
    sides = losses.log_probs(logits), losses.log_probs(target)
    return divergence(*losses.top_k(*sides, **top_k))

  return jax.value_and_grad(loss)(student)


def value_and_grad(divergence, student, target, **top_k):
  """Value of one row and its gradient to the student's logits."""
  student, target = jnp.asarray(student), jnp.asarray(target)
  return jax.device_get(_value_and_grad(divergence, student, target, **top_k))


# p = (.1, .2, .7), q = (.5, .3, .2); the target's top 2 are ids 0 and 1, the
# student's are 2 and 1.
#   target, drop:        p (.1, .2)      q (.5, .3)
#   target, renormalize: p (1/3, 2/3)    q (5/8, 3/8)
#   target, bucket:      p (.1, .2, .7)  q (.5, .3, .2)
#   student, drop:       p (.7, .2)      q (.2, .3)
# Kills the choice of the wrong side, and renormalising only one (trap 19).
@pytest.mark.parametrize(
  'of, tail, student, target',
  [
    ('target', 'drop', [0.1, 0.2], [0.5, 0.3]),
    ('target', 'renormalize', [1 / 3, 2 / 3], [5 / 8, 3 / 8]),
    ('target', 'bucket', [0.1, 0.2, 0.7], [0.5, 0.3, 0.2]),
    ('student', 'drop', [0.7, 0.2], [0.2, 0.3]),
    ('student', 'renormalize', [7 / 9, 2 / 9], [2 / 5, 3 / 5]),
    ('student', 'bucket', [0.7, 0.2, 0.1], [0.2, 0.3, 0.5]),
  ],
)
def test_supports_by_hand(of, tail, student, target):
  p = jnp.log(jnp.array([0.1, 0.2, 0.7]))
  q = jnp.log(jnp.array([0.5, 0.3, 0.2]))
  got = losses.top_k(p, q, k=2, of=of, tail=tail)
  np.testing.assert_allclose(jnp.exp(got[0]), student, rtol=1e-6)
  np.testing.assert_allclose(jnp.exp(got[1]), target, rtol=1e-6)


# Kills slips in any tail, and a gather along the wrong axis: leading [2, 3].
@pytest.mark.parametrize('of', SIDES)
@pytest.mark.parametrize('tail', TAILS)
def test_supports_equal_the_oracle(of, tail):
  rng = np.random.default_rng(1)
  student, target = rng.normal(size=(2, 2, 3, 10)) * 2
  got = losses.top_k(
    losses.log_probs(jnp.asarray(student)),
    losses.log_probs(jnp.asarray(target)),
    k=4,
    of=of,
    tail=tail,
  )
  for i in range(2):
    for j in range(3):
      p, q = oracles.softmax(student[i, j]), oracles.softmax(target[i, j])
      support = oracles.top(p if of == 'student' else q, 4)
      expected = oracles.restrict(p, q, support, tail)
      for side in range(2):
        np.testing.assert_allclose(
          jnp.exp(got[side][i, j]), expected[side], rtol=1e-5
        )


# The logit-space gradients of every loss on a support, from the formulas.
# Kills a tail that is detached, a stop-gradient in the wrong place, a missing
# normaliser.
@pytest.mark.parametrize(
  'divergence, tail, oracle',
  [
    (losses.reverse_kl, 'drop', oracles.grad_truncated_reverse_kl),
    (
      losses.stop_gradient_reverse_kl,
      'drop',
      oracles.grad_stop_gradient_reverse_kl,
    ),
    (losses.reverse_kl, 'renormalize', oracles.grad_renormalized_reverse_kl),
    (
      losses.stop_gradient_reverse_kl,
      'renormalize',
      oracles.grad_renormalized_reverse_kl,
    ),
    (losses.reverse_kl, 'bucket', oracles.grad_bucket_reverse_kl),
    (losses.forward_kl, 'drop', oracles.grad_truncated_forward_kl),
    (losses.forward_kl, 'renormalize', oracles.grad_renormalized_forward_kl),
    (
      functools.partial(losses.generalized_jsd, beta=0.3),
      'drop',
      functools.partial(oracles.grad_truncated_jsd, beta=0.3),
    ),
  ],
)
def test_gradients_on_a_support_equal_the_formulas(divergence, tail, oracle):
  student, target = pair(2)
  p, q = oracles.softmax(student), oracles.softmax(target)
  _, grad = value_and_grad(
    divergence, student, target, k=5, of='student', tail=tail
  )
  support = oracles.top(p, 5)
  np.testing.assert_allclose(grad, oracle(p, q, support), atol=1e-6)


# The paper's bias: raw minus stop-gradient is exactly the gradient of the mass
# on the support. Kills a stop-gradient on p itself, or on nothing.
def test_the_bias_of_the_raw_truncated_loss_is_the_gradient_of_the_mass():
  student, target = pair(3)
  p, q = oracles.softmax(student), oracles.softmax(target)
  raw, raw_grad = value_and_grad(
    losses.reverse_kl, student, target, k=4, tail='drop'
  )
  fixed, fixed_grad = value_and_grad(
    losses.stop_gradient_reverse_kl, student, target, k=4, tail='drop'
  )
  assert raw == fixed
  np.testing.assert_allclose(
    raw_grad - fixed_grad, oracles.grad_mass(p, oracles.top(q, 4)), atol=1e-6
  )


@functools.partial(jax.jit, static_argnames=('divergence', 'tail'))
def descend(divergence, student, target, tail):
  """The student's logits after descent on the target's top 3."""

  def loss(logits):
    sides = losses.log_probs(logits), losses.log_probs(target)
    return divergence(*losses.top_k(*sides, k=3, tail=tail))

  def step(_, logits):
    return logits - jax.grad(loss)(logits)

  return jax.lax.fori_loop(0, 4000, step, student)


# Trap 17. The raw loss is least at p = q / e: the student flees the support.
# The stop-gradient one settles at p = q there. Kills any confusion of the two.
def test_fixed_points_of_the_truncated_losses():
  student, target = pair(4, vocab=8)
  q = oracles.softmax(target)
  support = oracles.top(q, 3)
  student, target = jnp.asarray(student), jnp.asarray(target)
  raw = jax.nn.softmax(descend(losses.reverse_kl, student, target, 'drop'))
  np.testing.assert_allclose(raw[np.array(support)], q[support] / math.e, 1e-3)
  fixed = jax.nn.softmax(
    descend(losses.stop_gradient_reverse_kl, student, target, 'drop')
  )
  np.testing.assert_allclose(fixed[np.array(support)], q[support], rtol=1e-3)


# A bucket supervises the mass, renormalising leaves it where it was. Kills a
# 'renormalize' that trains mass, and a bucket that does not.
def test_only_the_bucket_moves_mass_onto_the_support():
  student, target = pair(4, vocab=8)
  p, q = oracles.softmax(student), oracles.softmax(target)
  support = np.array(oracles.top(q, 3))
  student, target = jnp.asarray(student), jnp.asarray(target)
  end = jax.nn.softmax(descend(losses.reverse_kl, student, target, 'bucket'))
  np.testing.assert_allclose(end[support].sum(), q[support].sum(), rtol=1e-3)
  blind = value_and_grad(
    losses.reverse_kl, student, target, k=3, tail='renormalize'
  )[1]
  np.testing.assert_allclose(blind[support].sum(), 0, atol=1e-6)
  outside = np.delete(np.asarray(blind), support)
  np.testing.assert_allclose(outside, np.zeros(5), atol=1e-6)
  assert abs(p[support].sum() - q[support].sum()) > 0.1  # it had far to go


# Trap 18. Kills a normaliser that runs over more than the support.
def test_renormalised_k_of_one_is_identically_zero():
  value, grad = value_and_grad(
    losses.reverse_kl, *pair(5), k=1, tail='renormalize'
  )
  assert value == 0
  np.testing.assert_array_equal(grad, np.zeros(12))


# Kills an empty bucket that is NaN or counts, and K = V off by one.
@pytest.mark.parametrize(
  'divergence, tail',
  [
    (losses.reverse_kl, 'drop'),
    (losses.reverse_kl, 'renormalize'),
    (losses.reverse_kl, 'bucket'),
    (losses.forward_kl, 'bucket'),
    (losses.generalized_jsd, 'bucket'),
  ],
)
def test_k_of_the_whole_vocabulary_is_the_full_divergence(divergence, tail):
  sides = pair(6)
  full = divergence(*(losses.log_probs(jnp.asarray(x)) for x in sides))
  for of in SIDES:
    value, grad = value_and_grad(divergence, *sides, k=12, of=of, tail=tail)
    np.testing.assert_allclose(value, full, rtol=1e-5)
    assert np.isfinite(grad).all()


# Merging categories cannot raise a KL. Kills a bucket with one side's mass.
def test_the_bucket_is_a_lower_bound_that_grows_with_k():
  student, target = pair(7)
  values = [
    value_and_grad(losses.reverse_kl, student, target, k=k)[0]
    for k in (1, 3, 5, 12)
  ]
  assert values[0] > 0
  assert (np.diff(values) > -1e-6).all()


# Trap 16: renormalised and bucketed forward KL stay positive, and alive, where
# the truncated one is negative. Kills a clamp at 0.
def test_a_sharper_student_is_still_taught():
  rng = np.random.default_rng(8)
  target = rng.normal(size=12) * 2
  student = 1.2 * target
  truncated, _ = value_and_grad(
    losses.forward_kl, student, target, k=3, tail='drop'
  )
  assert truncated < 0
  for tail in ('renormalize', 'bucket'):
    value, grad = value_and_grad(
      losses.forward_kl, student, target, k=3, tail=tail
    )
    assert value > 1e-3
    assert np.abs(grad).max() > 1e-3


# Trap 20. All mass on one token to float32's last digit: log(1 - mass) would be
# -inf or noise, the bucket is
# log(11) - 40. Kills log1p(-mass).
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_a_mass_that_rounds_to_one_leaves_an_exact_bucket(dtype):
  target = jnp.zeros(12, dtype).at[0].set(40.0)
  student = jnp.zeros(12, dtype).at[0].set(1.0)
  logp = losses.log_probs(target)
  _, bucketed = losses.top_k(logp, logp, k=1)
  np.testing.assert_allclose(bucketed, [0.0, math.log(11) - 40.0], rtol=1e-6)
  for divergence in (losses.reverse_kl, losses.forward_kl):
    for sides in ((student, target), (target, student)):
      value, grad = value_and_grad(divergence, *sides, k=1)
      p, q = (oracles.softmax(np.asarray(x, np.float64)) for x in sides)
      oracle = {
        losses.reverse_kl: oracles.reverse_kl,
        losses.forward_kl: oracles.forward_kl,
      }[divergence]
      expected = oracle([p[0], p[1:].sum()], [q[0], q[1:].sum()])
      np.testing.assert_allclose(value, expected, rtol=1e-5)
      assert np.isfinite(grad).all()


# Kills NaN from a bucket in which every token is impossible.
@pytest.mark.parametrize(
  'tail, of',
  [('drop', 'target'), ('renormalize', 'student'), ('bucket', 'student')],
)
def test_impossible_tokens_give_finite_gradients(tail, of):
  student, target = np.full(12, -np.inf), np.full(12, -np.inf)
  student[:2], target[:3] = [0.0, 1.0], [0.5, 0.0, 0.1]
  for divergence in (losses.reverse_kl, losses.forward_kl):
    value, grad = value_and_grad(
      divergence, student, target, k=3, of=of, tail=tail
    )
    assert np.isfinite(value) and np.isfinite(grad).all()


@pytest.mark.parametrize(
  'wrong, message',
  [
    ({'k': 0}, r'k must be in \[1, 12\]'),
    ({'k': 13}, r'k must be in \[1, 12\]'),
    ({'k': 3, 'of': 'teacher'}, "of must be 'target' or 'student'"),
    ({'k': 3, 'tail': 'keep'}, "tail must be 'drop', 'renormalize' or"),
  ],
)
def test_impossible_supports_are_refused(wrong, message):
  with pytest.raises(ValueError, match=message):
    value_and_grad(losses.reverse_kl, *pair(), **wrong)


# The grouped search is exact, ties included. Kills an unsorted group list, and
# a vocabulary that the groups do not divide.
@pytest.mark.parametrize('vocab', [2 * 4 * GROUP, 16 * GROUP, 16 * GROUP + 7])
def test_the_likeliest_tokens_are_found_in_order(vocab):
  rng = np.random.default_rng(9)
  logp = rng.integers(-vocab // 4, 0, size=(3, 2, vocab)).astype(np.float32)
  got = jax.jit(top_indices, static_argnums=1)(jnp.asarray(logp), 4)
  for i in range(3):
    for j in range(2):
      assert got[i, j].tolist() == oracles.top(logp[i, j], 4)
