"""Advantages: loops in float64, and their mean and spread by enumeration."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from jopd import losses
from jopd.losses.token_stats import reads_of

V = 12
RNG = np.random.default_rng(0)
STUDENT, TARGET = RNG.normal(size=(2, V)) * 1.5
P, Q = oracles.softmax(STUDENT), oracles.softmax(TARGET)
MASK = np.array(
  [
    [True, True, True, True, True],
    [True, False, True, True, False],  # holes: turns of somebody else
    [False, False, False, False, False],
    [False, False, True, False, False],
  ]
)
RATIOS = RNG.normal(size=MASK.shape).astype(np.float32)
EVERY_ADVANTAGE = [
  losses.log_ratio,
  losses.centered_log_ratio,
  functools.partial(losses.clip, low=-1.0),
  functools.partial(losses.discounted_return, gamma=0.5),
]


def batch_of(tokens, teacher=True):
  """A TokenBatch of one row in which all tokens share P and Q."""
  rows = lambda x: jnp.broadcast_to(
    losses.log_probs(jnp.asarray(x)), (1, len(tokens), V)
  )
  return losses.TokenBatch(
    student_logp=rows(STUDENT),
    logps={'teacher': rows(TARGET)} if teacher else {},
    token=jnp.asarray(tokens)[None],
    sampler_logp=jnp.zeros((1, len(tokens))),
  )


def stats_of(tokens):
  batch = batch_of(tokens)
  return losses.token_stats(
    batch.student_logp,
    batch.logps['teacher'],
    batch.token,
    batch.sampler_logp,
  )


def stats_with(ratios, mask):
  """Stats of which an advantage sees nothing but log-ratios and the mask."""
  ratios = jnp.asarray(ratios, jnp.float32)
  return losses.TokenStats(
    student_logp=jnp.zeros_like(ratios),
    target_logp=ratios,
    mask=jnp.asarray(mask),
    group=jnp.zeros(ratios.shape, int),
  )


def spread(p, advantage):
  """Variance of advantage * grad log p over p's tokens, summed over logits."""
  grads = advantage[:, None] * (np.eye(len(p)) - p)
  mean = p @ grads
  return p @ np.sum(grads**2, axis=1) - np.sum(mean**2)


def to_come(advantage, mask, gamma):
  """Row by row, sum over u >= t of gamma^(u - t) c_u where the mask is True."""
  total = np.zeros(advantage.shape)
  for b, row in enumerate(advantage):
    for t in range(len(row)):
      for u in range(t, len(row)):
        if mask[b, u]:
          total[b, t] += gamma ** (u - t) * row[u]
  return total


# p = (1/4, 3/4), q = (1/2, 1/2), so KL = (log 1/2 + 3 log 3/2) / 4 = 0.130812:
#   token 0: log 2   + KL =  0.823959
#   token 1: log 2/3 + KL = -0.274653
# Kills a baseline of the other sign, or of the other KL (which is 0.143841).
def test_the_centered_log_ratio_by_hand():
  p, q = jnp.log(jnp.array([0.25, 0.75])), jnp.log(jnp.array([0.5, 0.5]))
  for token, expected in ((0, 0.823959), (1, -0.274653)):
    stats = losses.token_stats(p, q, jnp.array(token), jnp.array(0.0))
    advantage = losses.centered_log_ratio(stats)
    np.testing.assert_allclose(advantage, expected, rtol=1e-5)


# Over the student's own tokens, which is not over the vocabulary, nor over the
# teacher's. Kills a baseline that is an average over a batch or over V.
def test_the_centered_advantage_has_mean_zero_over_the_students_tokens():
  stats = stats_of(range(V))
  plain = np.asarray(losses.log_ratio(stats)[0], np.float64)
  centered = np.asarray(losses.centered_log_ratio(stats)[0], np.float64)
  kl = oracles.reverse_kl(P, Q)
  np.testing.assert_allclose(P @ plain, -kl, rtol=1e-5)
  np.testing.assert_allclose(P @ centered, 0, atol=1e-6 * kl)
  assert abs(centered.mean()) > 0.1 and abs(Q @ centered) > 0.1


# Of the advantage: E c^2 falls from Var + KL^2 to Var, always. Kills a baseline
# that is added on the wrong side.
def test_the_baseline_takes_the_square_of_the_kl_off_the_advantages():
  stats = stats_of(range(V))
  plain = np.asarray(losses.log_ratio(stats)[0], np.float64)
  centered = np.asarray(losses.centered_log_ratio(stats)[0], np.float64)
  kl = oracles.reverse_kl(P, Q)
  np.testing.assert_allclose(P @ plain**2 - P @ centered**2, kl**2, rtol=1e-4)


# Of the gradient, as a rule: here a third of it is gone. It is no law: with
# p = (0.9, 0.1) and q = (0.1, 0.9) the log-ratios are -2.197 and 2.197 and the
# KL is 1.758. The gradient's first coordinates are 0.1 c_0 and -0.9 c_1, that
# is -0.220 and -1.978 plain, -0.044 and -3.560 centered, and two coordinates of
# variance 0.09 * difference^2 give 0.556 and 2.225. Kills a baseline that does
# nothing, and a doc that promises less for every student.
def test_the_baseline_mostly_lessens_the_variance_of_the_gradient():
  def both(p, q):
    c = np.log(q) - np.log(p)
    stats = stats_with(c[None], np.ones((1, len(p)), bool))
    stats = stats._replace(
      reverse_kl=jnp.full((1, len(p)), oracles.reverse_kl(p, q), jnp.float32)
    )
    return [
      spread(p, np.asarray(advantage(stats)[0], np.float64))
      for advantage in (losses.log_ratio, losses.centered_log_ratio)
    ]

  plain, centered = both(P, Q)
  assert centered < 0.7 * plain
  unlike = both(np.array([0.9, 0.1]), np.array([0.1, 0.9]))
  np.testing.assert_allclose(unlike, [0.556, 2.225], rtol=1e-3)


# gamma 0 is the advantage itself, 1 the plain sum. Kills a sum that runs
# forward, or over rows, a power that is off by one, a mask that is forgotten,
# and a discount that skips the places that do not count.
@pytest.mark.parametrize('gamma', [0.0, 0.5, 1.0])
def test_discounted_returns_equal_the_loops(gamma):
  advantage = losses.discounted_return(stats_with(RATIOS, MASK), gamma=gamma)
  expected = to_come(RATIOS, MASK, gamma)
  np.testing.assert_allclose(advantage, expected, rtol=1e-5, atol=1e-6)
  if gamma == 0:
    np.testing.assert_array_equal(advantage, np.where(MASK, RATIOS, 0.0))


# Kills a gamma that is baked in.
def test_a_scheduled_gamma_does_not_retrace():
  traces = []

  @jax.jit
  def run(gamma):
    traces.append(1)
    return losses.discounted_return(stats_with(RATIOS, MASK), gamma=gamma)

  half, one = run(jnp.float32(0.5)), run(jnp.float32(1.0))
  assert len(traces) == 1
  assert np.abs(half - one).max() > 0.1


# Advantages -3, 1, 5 and bounds [-2, 2], inclusive: -2 and 2 stay as they are.
# Kills low exchanged with high, and a rule that drops what lies outside.
def test_the_bounds_by_hand():
  stats = stats_with([[-3.0, -2.0, 1.0, 2.0, 5.0]], [[True] * 5])
  both = losses.clip(stats, low=-2.0, high=2.0)
  np.testing.assert_array_equal(both, [[-2, -2, 1, 2, 2]])
  low = losses.clip(stats, low=-2.0)
  np.testing.assert_array_equal(low, [[-2, -2, 1, 2, 5]])
  neither = losses.clip(stats)
  np.testing.assert_array_equal(neither, losses.log_ratio(stats))


# Log-ratios -4 and -4, gamma 1/2, low -5: bounding each changes nothing, so the
# sums are -6, -4; bounding the sums gives -5, -4. Kills an inner advantage that
# is not called, and an order that is turned round.
def test_advantages_nest_from_the_inside_out():
  stats = stats_with([[-4.0, -4.0]], [[True, True]])
  bounded = functools.partial(losses.clip, low=-5.0)
  to_come = functools.partial(losses.discounted_return, gamma=0.5)
  sums_of_bounded = to_come(stats, advantage=bounded)
  bounded_sums = bounded(stats, advantage=to_come)
  np.testing.assert_array_equal(sums_of_bounded, [[-6, -4]])
  np.testing.assert_array_equal(bounded_sums, [[-5, -4]])
  centered = bounded(
    stats._replace(reverse_kl=jnp.array([[9.0, 0.0]])),
    advantage=losses.centered_log_ratio,
  )
  np.testing.assert_array_equal(centered, [[5, -4]])


# The chunked loss takes one pass for 'token' and whole rows for 'row', and a
# run refuses 'batch' with gradient accumulation. Kills a partial or a nested
# advantage that loses its declaration, and one that takes the outer one alone.
def test_what_each_advantage_reads():
  partial = functools.partial
  to_come = partial(losses.discounted_return, gamma=0.5)
  anything = lambda stats: losses.log_ratio(stats)
  for advantage, reads in [
    (losses.log_ratio, 'token'),
    (losses.centered_log_ratio, 'token'),
    (losses.clip, 'token'),
    (losses.scaled_advantage, 'token'),
    (losses.discounted_return, 'row'),
    (losses.future_mean, 'row'),
    (to_come, 'row'),
    (partial(losses.clip, advantage=losses.centered_log_ratio), 'token'),
    (partial(to_come, advantage=partial(losses.clip, low=-1.0)), 'row'),
    (partial(losses.clip, low=-1.0, advantage=to_come), 'row'),
    (partial(partial(losses.clip, advantage=to_come), low=-1.0), 'row'),
    (anything, 'batch'),
    (partial(losses.clip, advantage=anything), 'batch'),
    (partial(to_come, advantage=anything), 'batch'),
  ]:
    assert reads_of(advantage).scope == reads, advantage


# Kills a bare TypeError from None, and an error without a way out.
@pytest.mark.parametrize('advantage', EVERY_ADVANTAGE)
def test_an_advantage_without_a_teacher_is_refused_with_the_cure(advantage):
  objective = losses.policy_gradient(losses.reinforce, advantage=advantage)
  with pytest.raises(
    ValueError, match='the term has no teacher: add one to teachers'
  ):
    objective(batch_of([0, 1], teacher=False))


# A target that excludes token 0, which was sampled. Kills inf - inf between the
# log-ratio and its baseline, and an inf that spreads along the row.
@pytest.mark.parametrize('advantage', EVERY_ADVANTAGE)
def test_an_excluded_token_has_a_finite_advantage(advantage):
  p = jnp.log(jnp.array([[[0.25, 0.75], [0.25, 0.75]]]))
  q = jnp.log(jnp.array([[[0.0, 1.0], [0.5, 0.5]]]))
  zeros = jnp.zeros((1, 2))
  stats = losses.token_stats(p, q, zeros.astype(int), zeros)
  advantages = np.asarray(advantage(stats))
  assert np.isfinite(advantages).all()
  # It is bad, also above its mean: a quarter of -1e9.
  assert advantages[0, 0] <= (-1 if advantage is EVERY_ADVANTAGE[2] else -1e8)


# The gradient of the whole is -advantage * grad log p, with the advantage a
# number. Kills an advantage, nested or summed along the row, that the student
# can change.
@pytest.mark.parametrize('advantage', EVERY_ADVANTAGE)
def test_an_advantage_is_a_constant(advantage):
  batch = batch_of([3, 7, 1])
  objective = losses.policy_gradient(losses.reinforce, advantage=advantage)

  def loss(logits):
    return jnp.sum(
      objective(batch._replace(student_logp=losses.log_probs(logits)))
    )

  grad = jax.grad(loss)(jnp.broadcast_to(jnp.asarray(STUDENT), (1, 3, V)))
  numbers = np.asarray(advantage(stats_of([3, 7, 1])), np.float64)
  expected = -numbers[0][:, None] * (np.eye(V)[[3, 7, 1]] - P)
  np.testing.assert_allclose(grad[0], expected, rtol=1e-4, atol=1e-6)


def graded(rewards):
  """Stats of one token in each response; of [b, G] rewards."""
  row = losses.group_reward_stats(jnp.asarray(rewards, jnp.float32))
  zeros = jnp.zeros_like(row.reward)
  return losses.token_stats(
    jnp.zeros((len(zeros), 1)),
    None,
    zeros.astype(int),
    zeros,
    row=row,
  )


# Rewards 1, 0, 0, 0: mean 1/4, deviation sqrt(3) / 4 = 0.433013, so 3/4 and
# -1/4 above it, or 1.732051 and -0.577350 deviations. A second prompt of equal
# rewards says nothing. Kills the batch's mean for the group's, 0 / 0, a
# deviation of a sample (1.5), rewards that are scaled where they should not.
def test_the_group_advantage_by_hand():
  stats = graded([[1, 0, 0, 0], [0.3, 0.3, 0.3, 0.3]])
  scaled = losses.group_advantage(stats)
  expected = [1.732051, *[-0.577350] * 3, 0, 0, 0, 0]
  np.testing.assert_allclose(scaled, expected, rtol=1e-4, atol=1e-6)
  plain = losses.group_advantage(stats, scale='none')
  expected = [0.75, *[-0.25] * 3, 0, 0, 0, 0]
  np.testing.assert_allclose(plain, expected, rtol=1e-6, atol=1e-6)
  np.testing.assert_allclose(losses.reward(stats)[:2], [1, 0])


# r_i - mean of the others. Kills the coefficient that the docstring promises.
def test_leave_one_out_is_a_coefficient():
  rewards = np.array([[1.0, 0.0, 0.25, 0.5, 0.5]])
  others = [np.delete(rewards[0], i).mean() for i in range(5)]
  plain = losses.group_advantage(graded(rewards), scale='none')
  np.testing.assert_allclose(plain * 5 / 4, rewards[0] - others, rtol=1e-5)


# Kills an outcome that is taken for 0, and an error without a way out.
@pytest.mark.parametrize('advantage', [losses.reward, losses.group_advantage])
def test_missing_rewards_are_refused_with_the_cure(advantage):
  objective = losses.policy_gradient(losses.reinforce, advantage=advantage)
  with pytest.raises(ValueError, match='use a response source that samples'):
    objective(batch_of([0, 1]))
  assert reads_of(advantage) == losses.Reads('token', True, False)
  with pytest.raises(ValueError, match="scale must be 'std' or 'none', got 'v"):
    losses.group_advantage(graded([[1, 0]]), scale='var')


# Rewards and log-ratios of four rows, one of them empty, with holes.
LIVE = np.array(
  [
    [True, True, True, True, True, True],
    [True, False, True, True, False, False],
    [False, False, False, False, False, False],
    [False, False, True, False, False, False],
  ]
)
LOG_RATIO = RNG.normal(size=LIVE.shape)
REWARD = np.array([1.0, 0.0, 1.0, 0.0])[:, None] * np.ones(LIVE.shape)
ADVANTAGE = (REWARD - 0.5) / (0.5 + 1e-6)


def rewarded(ratio=LOG_RATIO):
  each = lambda x: jnp.asarray(np.broadcast_to(x, LIVE.shape), jnp.float32)
  return losses.TokenStats(
    student_logp=each(-1.0),
    target_logp=each(ratio - 1.0),
    mask=jnp.asarray(LIVE),
    reward=each(REWARD),
    group_mean=each(0.5),
    group_std=each(0.5),
  )


def equal(got, want, **tolerance):
  got, want = (
    np.where(LIVE, np.asarray(x, np.float64), 0) for x in (got, want)
  )
  np.testing.assert_allclose(got, want, **{'rtol': 2e-5} | tolerance)


# Kills the mean over all later slots, one that contains the token itself, and
# 0 / 0 after the last.
def test_the_mean_to_come_equals_the_loop():
  want = np.zeros(LIVE.shape)
  for b, t in np.argwhere(LIVE):
    later = [LOG_RATIO[b, u] for u in range(t + 1, 6) if LIVE[b, u]]
    want[b, t] = 0.5 * LOG_RATIO[b, t] + (
      sum(later) / len(later) if later else 0
    )
  equal(losses.future_mean(rewarded(), own=0.5), want, atol=1e-6)


# RLSD at power 1 and RLRT at -1, above a reward. Kills a sign that is lost, a
# clip of the log, a mix the other way round, wrong answers that are scaled.
@pytest.mark.parametrize('power, above', [(1.0, -np.inf), (-1.0, 0.5)])
def test_a_scaled_advantage_equals_the_loop(power, above):
  want = np.zeros(LIVE.shape)
  for b, t in np.argwhere(LIVE):
    a = ADVANTAGE[b, t]
    w = math.exp(power * math.copysign(1, a) * LOG_RATIO[b, t])
    w = min(max(w, 0.8), 1.2) if REWARD[b, t] >= above else 1.0
    want[b, t] = a * (0.75 + 0.25 * w)
  got = losses.scaled_advantage(rewarded(), power=power, mix=0.25, above=above)
  equal(got, want)
  assert np.all(np.sign(np.asarray(got)[LIVE]) == np.sign(ADVANTAGE[LIVE]))


# Each is the plain advantage: mix 0, power 0, or a teacher that is the student.
# Kills what is left of the teacher there.
@pytest.mark.parametrize(
  'settings, ratio',
  [
    (dict(power=1.0, mix=0.0), LOG_RATIO),
    (dict(power=0.0), LOG_RATIO),
    (dict(power=-1.0), 0 * LOG_RATIO),
  ],
)
def test_without_the_teachers_part_it_is_the_plain_advantage(settings, ratio):
  stats = rewarded(ratio)
  got = losses.scaled_advantage(stats, **settings)
  equal(got, losses.group_advantage(stats), atol=1e-7)


@pytest.mark.parametrize(
  'settings, part',
  [(dict(mix=2), 'mix must be in'), (dict(clip=1), 'clip must be in')],
)
def test_a_scale_out_of_range_is_refused(settings, part):
  with pytest.raises(ValueError, match=part):
    losses.scaled_advantage(rewarded(), power=1.0, **settings)
