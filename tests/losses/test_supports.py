"""Supports: what is kept, the tail's fate, and the bias of truncation."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from jopd import losses
from jopd.losses.distributions import LOG_ZERO, group_size, top_indices

TAILS = ('drop', 'renormalize', 'bucket')
SIDES = ('student', 'target', 'union', 'intersection')


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


# p = (.1, .4, .2, .05, .25), q = (.3, .35, .05, .1, .2).
# Top 2: the student's 1, 4, the target's 1, 0. The union's slots are 1, 4, -,
# 0, the third empty since 1 came first: p .4 + .25 + .1 = .75, q .35 + .2 + .3
# = .85, buckets .25 and .15.
# Top 3: the student's 1, 4, 2, the target's 1, 0, 4. The intersection's slots
# are 1, 4, -: p .65, q .55, buckets .35 and .45.
# Kills a token that counts twice (p .4 + .25 + .4 + .1 > 1), q's token in p's
# slot, and an empty slot with a share.
@pytest.mark.parametrize(
  'of, tail, student, target',
  [
    ('union', 'drop', [0.4, 0.25, 0, 0.1], [0.35, 0.2, 0, 0.3]),
    (
      'union',
      'renormalize',
      [8 / 15, 1 / 3, 0, 2 / 15],
      [7 / 17, 4 / 17, 0, 6 / 17],
    ),
    ('union', 'bucket', [0.4, 0.25, 0, 0.1, 0.25], [0.35, 0.2, 0, 0.3, 0.15]),
    ('intersection', 'drop', [0.4, 0.25, 0], [0.35, 0.2, 0]),
    ('intersection', 'renormalize', [8 / 13, 5 / 13, 0], [7 / 11, 4 / 11, 0]),
    ('intersection', 'bucket', [0.4, 0.25, 0, 0.35], [0.35, 0.2, 0, 0.45]),
  ],
)
def test_supports_of_both_sides_by_hand(of, tail, student, target):
  p = jnp.log(jnp.array([0.1, 0.4, 0.2, 0.05, 0.25]))
  q = jnp.log(jnp.array([0.3, 0.35, 0.05, 0.1, 0.2]))
  k = 2 if of == 'union' else 3
  got = losses.top_k(p, q, k=k, of=of, tail=tail)
  np.testing.assert_allclose(jnp.exp(got[0]), student, rtol=1e-6)
  np.testing.assert_allclose(jnp.exp(got[1]), target, rtol=1e-6)
  empty = np.array(student) == 0
  for side in got:
    np.testing.assert_array_equal(side[empty], np.full(empty.sum(), LOG_ZERO))


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
      support = oracles.chosen(p, q, 4, of)
      expected = oracles.restrict(p, q, support, tail)
      filled = np.asarray(got[0][i, j]) > LOG_ZERO
      for side in range(2):
        np.testing.assert_allclose(
          jnp.exp(got[side][i, j])[filled], expected[side], rtol=1e-5
        )


# The student's top 5 are the target's last. Nothing to compare, but for the
# bucket, which holds all of either side: 0 in each case. Kills 0 / 0, and a
# support that is silently another one.
@pytest.mark.parametrize('tail', TAILS)
def test_an_empty_intersection_teaches_nothing(tail):
  student = np.linspace(-2, 2, 12)
  for divergence in (losses.reverse_kl, losses.forward_kl):
    value, grad = value_and_grad(
      divergence, student, -student, k=5, of='intersection', tail=tail
    )
    np.testing.assert_allclose(value, 0, atol=1e-6)
    np.testing.assert_allclose(grad, np.zeros(12), atol=1e-6)
    if tail != 'bucket':
      assert value == 0 and (grad == 0).all()


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


DROP = functools.partial(losses.top_k, k=3, tail='drop')
BUCKET = functools.partial(losses.top_k, k=3, tail='bucket')


@functools.partial(jax.jit, static_argnums=(0, 1))
def _descend(divergence, support, student, target):
  def loss(logits):
    sides = losses.log_probs(logits), losses.log_probs(target)
    return divergence(*support(*sides))

  def step(_, logits):
    return logits - jax.grad(loss)(logits)

  logits = jax.lax.fori_loop(0, 4000, step, student)
  return jax.nn.softmax(logits), loss(logits)


def descend(divergence, support):
  """Where descent ends: p, the loss there, q, and the target's top 3."""
  student, target = pair(4, vocab=8)
  q = oracles.softmax(target)
  p, value = _descend(
    divergence, support, jnp.asarray(student), jnp.asarray(target)
  )
  return np.asarray(p), value, q, np.array(oracles.top(q, 3))


# Trap 17, with Q the target's mass on S. At p = q / e on S each summand is
# q / e log(1 / e), so the loss is -Q / e: lower than the 0 of p = q. Kills any
# confusion with the losses of the next test but one.
def test_the_raw_truncated_reverse_kl_flees_the_support():
  p, value, q, support = descend(losses.reverse_kl, DROP)
  np.testing.assert_allclose(p[support], q[support] / math.e, rtol=1e-3)
  np.testing.assert_allclose(value, -q[support].sum() / math.e, rtol=1e-4)


# The other bias: at p = q / Q on S nothing is left outside, and the loss is
# Q log Q < 0. The tail falls as 1 / t. Kills a forward KL that rests at p = q.
def test_the_raw_truncated_forward_kl_leaves_nothing_outside():
  p, value, q, support = descend(losses.forward_kl, DROP)
  mass = q[support].sum()
  assert mass < 0.95 and p[support].sum() > 0.995
  np.testing.assert_allclose(p[support], q[support] / mass, rtol=5e-3)
  np.testing.assert_allclose(value, mass * math.log(mass), atol=5e-3)


# Kills a repair that repairs nothing: all of them come to rest at p = q on the
# support, whatever became of the rest.
@pytest.mark.parametrize(
  'divergence, support',
  [
    (losses.stop_gradient_reverse_kl, DROP),
    (losses.generalized_reverse_kl, DROP),
    (losses.generalized_forward_kl, DROP),
    (losses.generalized_jsd, DROP),
    (losses.alpha_divergence, DROP),
    (losses.reverse_kl, BUCKET),
    (losses.reverse_kl, losses.full),
  ],
)
def test_the_sound_losses_rest_at_the_target(divergence, support):
  p, value, q, on = descend(divergence, support)
  np.testing.assert_allclose(p[on], q[on], rtol=2e-3)
  np.testing.assert_allclose(value, 0, atol=1e-4)
  if support is losses.full:
    np.testing.assert_allclose(p, q, rtol=2e-3)


# A bucket supervises the mass, renormalising does not. Kills a 'renormalize'
# that trains mass, and a bucket that does not.
def test_only_the_bucket_moves_mass_onto_the_support():
  end, _, q, support = descend(losses.reverse_kl, BUCKET)
  np.testing.assert_allclose(end[support].sum(), q[support].sum(), rtol=1e-3)
  student, target = pair(4, vocab=8)
  p = oracles.softmax(student)
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
@pytest.mark.parametrize('of', SIDES)
def test_k_of_the_whole_vocabulary_is_the_full_divergence(of):
  student, target = (jnp.asarray(x) for x in pair(6))

  def values(student):
    sides = losses.log_probs(student), losses.log_probs(target)
    full, *whole = (
      sides if tail is None else losses.top_k(*sides, k=12, of=of, tail=tail)
      for tail in (None, *TAILS)
    )
    divergences = losses.reverse_kl, losses.forward_kl, losses.generalized_jsd
    got = [[divergence(*x) for x in whole] for divergence in divergences]
    return jnp.array(got), [divergence(*full) for divergence in divergences]

  got, expected = jax.jit(values)(student)
  for values_of_tails, value in zip(got, expected, strict=True):
    np.testing.assert_allclose(values_of_tails, [value] * 3, rtol=1e-5)
  grads = jax.jit(jax.jacrev(lambda x: values(x)[0]))(student)
  assert np.isfinite(grads).all()


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
  [
    ('drop', 'target'),
    ('renormalize', 'student'),
    ('bucket', 'student'),
    ('renormalize', 'union'),
    ('renormalize', 'intersection'),
    ('bucket', 'intersection'),
  ],
)
def test_impossible_tokens_give_finite_gradients(tail, of):
  student, target = np.full(12, -np.inf), np.full(12, -np.inf)
  student[:2], target[:3] = [0.0, 1.0], [0.5, 0.0, 0.1]
  for divergence in (losses.reverse_kl, losses.forward_kl):
    value, grad = value_and_grad(
      divergence, student, target, k=5, of=of, tail=tail
    )
    assert np.isfinite(value) and np.isfinite(grad).all()


# More slots than tokens that can be: 4 of the student's 5 and of the target's 5
# have no mass on either side. Kills a -inf that counts, or that makes a NaN.
@pytest.mark.parametrize('of', SIDES)
@pytest.mark.parametrize('tail', TAILS)
def test_chosen_tokens_without_mass_add_nothing(of, tail):
  student, target = np.full(12, -np.inf), np.full(12, -np.inf)
  student[[8, 10]], target[[8, 10]] = [0.0, 1.0], [2.0, 0.0]
  value, grad = value_and_grad(
    losses.reverse_kl, student, target, k=5, of=of, tail=tail
  )
  p, q = oracles.softmax(student[[8, 10]]), oracles.softmax(target[[8, 10]])
  np.testing.assert_allclose(value, oracles.reverse_kl(p, q), rtol=1e-5)
  expected = np.zeros(12)
  expected[[8, 10]] = oracles.grad_full_reverse_kl(p, q)
  np.testing.assert_allclose(grad, expected, atol=1e-6)


# The target's only token is 3; ids 0 and 1 are in its top 3 by the tie rule
# and in the student's, so they alone are in both, without mass in the target.
# It is then as likely there as not: q = (1/2, 1/2, -), p = (.6, .4, -). Kills a
# share for the empty slot, q = (1/3, 1/3, 1/3).
def test_an_empty_slot_has_no_share_of_a_side_without_mass():
  p = jnp.log(jnp.array([0.45, 0.3, 0.25, 0.0]))
  q = jnp.log(jnp.array([0.0, 0.0, 0.0, 1.0]))
  student, target = losses.top_k(
    p, q, k=3, of='intersection', tail='renormalize'
  )
  np.testing.assert_allclose(jnp.exp(student), [0.6, 0.4, 0], rtol=1e-6)
  np.testing.assert_allclose(jnp.exp(target), [0.5, 0.5, 0], rtol=1e-6)


@pytest.mark.parametrize(
  'wrong, message',
  [
    ({'k': 0}, r'k must be in \[1, 12\]'),
    ({'k': 13}, r'k must be in \[1, 12\]'),
    ({'k': 3, 'of': 'teacher'}, "of must be 'student', .* got 'teacher'"),
    ({'k': 3, 'tail': 'keep'}, "tail must be 'drop', 'renormalize' or"),
  ],
)
def test_impossible_supports_are_refused(wrong, message):
  with pytest.raises(ValueError, match=message):
    value_and_grad(losses.reverse_kl, *pair(), **wrong)


# The grouped search is exact; among equals, of which there are many, it may
# take any. Kills a group that is lost, an id found twice, ids of another group,
# and a vocabulary that the groups do not divide.
@pytest.mark.parametrize(
  'vocab, size', [(511, 1), (512, 16), (2048, 16), (2056, 8), (2055, 1)]
)
def test_the_likeliest_tokens_are_found_in_order(vocab, size):
  assert group_size(vocab, 4) == size
  rng = np.random.default_rng(9)
  logp = rng.integers(-vocab // 4, 0, size=(3, 2, vocab)).astype(np.float32)
  got = jax.jit(top_indices, static_argnums=1)(jnp.asarray(logp), 4)
  for i in range(3):
    for j in range(2):
      ids = got[i, j].tolist()
      best = oracles.top(logp[i, j], 4)
      assert logp[i, j][ids].tolist() == logp[i, j][best].tolist()
      assert len(set(ids)) == 4
