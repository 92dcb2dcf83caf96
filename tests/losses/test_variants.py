"""Advantages, weights and targets of published variants: loops, and their limits.

What each becomes at the ends of its settings is the cheapest truth there is:
at one of them it must be plain distillation, or the plain advantage.
"""

import functools
import math

import jax.numpy as jnp
import numpy as np
import pytest

from jopd import losses
from jopd.losses.token_stats import reads_of

RNG = np.random.default_rng(0)
MASK = np.array(
  [
    [True, True, True, True, True, True],
    [True, False, True, True, False, False],  # holes
    [False, False, False, False, False, False],
    [False, False, True, False, False, False],
  ]
)
RATIO, STUDENT, ENTROPY, KL = RNG.normal(size=(4, *MASK.shape))
STUDENT, ENTROPY, KL = -np.abs(STUDENT), np.abs(ENTROPY), np.abs(KL)
REWARD = np.array([1.0, 0.0, 1.0, 0.0])[:, None] * np.ones(MASK.shape)
ADVANTAGE = (REWARD - 0.5) / (0.5 + 1e-6)


def stats_of(ratio=RATIO, mask=MASK, **fields):
  known = dict(
    student_logp=STUDENT[: len(ratio), : ratio.shape[1]],
    student_entropy=ENTROPY,
    reverse_kl=KL,
    reward=REWARD,
    group_mean=np.full(MASK.shape, 0.5),
    group_std=np.full(MASK.shape, 0.5),
  )
  known = known | fields
  known['target_logp'] = known['student_logp'] + ratio
  arrays = {name: jnp.asarray(x, jnp.float32) for name, x in known.items()}
  return losses.TokenStats(**arrays)._replace(mask=jnp.asarray(mask))


STATS = stats_of()


def live(x):
  return np.where(MASK, np.asarray(x, np.float64), 0.0)


def equal(got, want, **tolerance):
  np.testing.assert_allclose(
    live(got), live(want), **{'rtol': 2e-5} | tolerance
  )


# Kills the mean over all later slots, one that contains the token itself, and
# 0 / 0 after the last.
def test_the_mean_to_come_equals_the_loop():
  want = np.zeros(MASK.shape)
  for b, t in np.argwhere(MASK):
    later = [RATIO[b, u] for u in range(t + 1, 6) if MASK[b, u]]
    want[b, t] = 0.5 * RATIO[b, t] + (sum(later) / len(later) if later else 0)
  equal(losses.future_mean(STATS, own=0.5), want, atol=1e-6)


# Rows of a group need not be neighbours. Kills statistics of another group, of
# masked slots and of rows that do not count, a mean over rows' means, a
# sample's deviation, and NaN at rest.
def test_standardized_credits_have_mean_0_and_deviation_1_in_a_group():
  group = np.array([7, 3, 7, 7])[:, None] * np.ones(MASK.shape, int)
  want = np.zeros(MASK.shape)
  for number in (3, 7):
    own = MASK & (group == number)
    want[own] = (RATIO[own] - RATIO[own].mean()) / RATIO[own].std()
  group = jnp.asarray(group)
  got = losses.whiten(STATS._replace(group=group))
  equal(got, want, rtol=1e-4, atol=1e-6)
  at_rest = stats_of(0 * RATIO)._replace(group=group)
  equal(losses.whiten(at_rest), 0 * RATIO)
  with pytest.raises(ValueError, match='nothing says which these are'):
    losses.whiten(STATS)


# Kills a mixture of logs, a floor in another place, and NaN from a token that
# the teacher excludes.
def test_the_ratio_to_a_proximal_teacher():
  proximal = functools.partial(losses.proximal_log_ratio, STATS)
  equal(proximal(share=0.3), np.log(0.3 * np.exp(RATIO) + 0.7))
  equal(proximal(share=1.0), RATIO)
  excluded = stats_of(np.full(MASK.shape, -1e9))
  got = losses.proximal_log_ratio(excluded, share=0.3)
  equal(got, np.full(MASK.shape, math.log(0.7)))


# Kills a threshold on the wrong side, and an advantage that reads the teacher.
def test_the_control_needs_no_teacher():
  alone = STATS._replace(target_logp=None)
  got = losses.against_unlikely(alone, below=0.5, value=-2.0)
  equal(got, np.where(np.exp(STUDENT) < 0.5, -2.0, 0.0))
  objective = losses.policy_gradient(
    losses.reinforce,
    advantage=functools.partial(losses.against_unlikely, below=0.1),
  )
  losses.check_objective(objective, kind='policy_gradient', roles=())
  with pytest.raises(ValueError, match='moves a student that equals its targ'):
    losses.check_objective(objective, kind='policy_gradient')


# RLSD at power 1 and RLRT at -1, above a reward. Kills a sign that is lost, a
# clip of the log, a mix the other way round, wrong answers that are scaled.
@pytest.mark.parametrize('power, above', [(1.0, -np.inf), (-1.0, 0.5)])
def test_a_scaled_advantage_equals_the_loop(power, above):
  want = np.zeros(MASK.shape)
  for b, t in np.argwhere(MASK):
    a = ADVANTAGE[b, t]
    w = math.exp(power * math.copysign(1, a) * RATIO[b, t])
    w = min(max(w, 0.8), 1.2) if REWARD[b, t] >= above else 1.0
    want[b, t] = a * (0.75 + 0.25 * w)
  got = losses.scaled_advantage(STATS, power=power, mix=0.25, above=above)
  equal(got, want)
  assert np.all(np.sign(live(got)) == np.sign(live(ADVANTAGE)))


# Each is the plain advantage at mix 0, power 0, or a teacher that is the
# student; and the pull at beta 0. Kills what is left of the teacher there.
@pytest.mark.parametrize(
  'advantage, ratio',
  [
    (functools.partial(losses.scaled_advantage, power=1.0, mix=0.0), RATIO),
    (functools.partial(losses.scaled_advantage, power=0.0), RATIO),
    (functools.partial(losses.scaled_advantage, power=-1.0), 0 * RATIO),
    (functools.partial(losses.entropy_directed, beta=0.0), RATIO),
    (functools.partial(losses.entropy_directed, beta=2.0), 0 * RATIO),
  ],
)
def test_without_the_teachers_part_it_is_the_plain_advantage(advantage, ratio):
  stats = stats_of(ratio)
  equal(advantage(stats), losses.group_advantage(stats), atol=1e-7)


# Kills statistics of masked slots or of the batch, a quantile of the largest,
# and NaN in a row of none or of one.
def test_a_pull_by_entropy_equals_the_loop():
  want = np.zeros(MASK.shape)
  for b in range(len(MASK)):
    at = np.flatnonzero(MASK[b])
    if not len(at):
      continue
    h, d = ENTROPY[b, at], RATIO[b, at]
    tau = np.sort(h)[math.ceil(0.4 * len(at)) - 1]
    sigma = np.abs(h - h.mean()).mean() + 1e-6
    bar = d / (np.abs(d).mean() + 1e-6)
    damp = 1 / (1 + np.exp(-(np.abs(bar) - 1)))
    want[b, at] = 3 * np.tanh((tau - h) / sigma) * damp * bar
  got = losses.entropy_directed(STATS, beta=3.0, quantile=0.4)
  assert np.all(np.isfinite(got))
  equal(got, ADVANTAGE + want, rtol=1e-4, atol=1e-5)


# Kills a share that contains the token, one over masked slots, weights that
# rise, and 0 / 0 where student and teacher agree.
def test_weights_ahead_of_disagreement_equal_the_loop():
  want = np.ones(MASK.shape)
  for b, t in np.argwhere(MASK):
    apart = [abs(RATIO[b, u]) if MASK[b, u] else 0.0 for u in range(6)]
    want[b, t] = 1 + 0.5 * (1 - sum(apart[:t]) / sum(apart))
  equal(losses.ahead_of_disagreement(STATS), want)
  equal(losses.ahead_of_disagreement(STATS, most=1.0), np.ones(MASK.shape))
  agreed = losses.ahead_of_disagreement(stats_of(0 * RATIO))
  equal(agreed, np.full(MASK.shape, 1.5))


def drop_by_loops(values, segment, least):
  """Where the criterion of Bayes puts a fall; None if it does not."""
  means = [
    np.mean(values[i : i + segment]) for i in range(0, len(values), segment)
  ]
  n, rss = len(means), lambda x: float(np.sum((x - np.mean(x)) ** 2))
  log_variance = lambda x: math.log(max(x / n, 1e-12))
  plain = n * log_variance(rss(means)) + math.log(n)
  found = [
    (n * log_variance(rss(means[:k]) + rss(means[k:])) + 3 * math.log(n), k)
    for k in range(least, n - least + 1)
    if np.mean(means[:k]) > np.mean(means[k:])
  ]
  best = min(found, default=(math.inf, 0))
  return best[1] * segment if best[0] < plain else None


# Rows with a fall, with a rise, with noise alone, and short ones; the masked
# slots hold 1e3. Kills a fall that is taken for a rise, a penalty that is
# forgotten, segments cut at slots instead of tokens, a prefix that ends a
# segment early or late.
def test_the_fall_of_a_stat_is_where_the_loops_find_it():
  rng = np.random.default_rng(1)
  slots, segment, least = 40, 3, 2
  margin = rng.normal(size=(24, slots))
  margin[:8, 20:] -= rng.uniform(0, 6, size=(8, 1))
  margin[8:12, 20:] += 4
  margin[12] = 2.0
  mask = rng.random(margin.shape) < 0.8
  mask[20:, 7:] = False
  want, falls = np.zeros(mask.shape), 0
  for b in range(len(mask)):
    at = np.flatnonzero(mask[b])
    fall = drop_by_loops(margin[b, at], segment, least)
    want[b, at[:fall]] = 1
    falls += fall is not None
  assert 4 <= falls <= 20
  stats = losses.TokenStats()
  stats = stats._replace(
    margin=jnp.asarray(np.where(mask, margin, 1e3), jnp.float32),
    mask=jnp.asarray(mask),
  )
  got = losses.before_drop(stats, segment=segment, least=least)
  np.testing.assert_array_equal(np.where(mask, got, 0), want)


# h + q - h q by its formula, sorted. Kills a product or a maximum instead, and
# a threshold over masked slots.
def test_informative_tokens_equal_the_sort():
  h, q = 1 - np.exp(-ENTROPY), 1 - np.exp(-KL)
  score = np.where(MASK, h + q - h * q, -np.inf)
  kept = round(0.4 * MASK.sum())
  want = score >= np.sort(score.ravel())[::-1][kept - 1]
  got = losses.top_informative(STATS, fraction=0.4)
  np.testing.assert_array_equal(got, want)
  every = losses.top_informative(STATS, fraction=1.0)
  np.testing.assert_array_equal(every, MASK)


def test_a_normalized_weight_has_mean_1_over_the_tokens_that_count():
  weight = functools.partial(losses.gate, of='log_ratio', low=0.0)
  got = np.asarray(losses.normalized(STATS, weight=weight))[MASK]
  np.testing.assert_allclose(got, (RATIO[MASK] > 0) / np.mean(RATIO[MASK] > 0))
  nobody = functools.partial(losses.gate, of='log_ratio', low=99.0)
  assert not np.any(losses.normalized(STATS, weight=nobody))


# The log-ratio to the extrapolated target is d + (lambda - 1) (log T - log R)
# less a normaliser, the same for all tokens. Kills a weight on the wrong side.
def test_an_extrapolated_log_ratio_is_the_published_advantage():
  s, t, r = np.log([[0.2, 0.5, 0.3], [0.3, 0.3, 0.4], [0.5, 0.3, 0.2]])
  logps = dict(zip(('teacher', 'reference'), jnp.asarray([t, r]), strict=True))
  for strength in (0.0, 0.5, 1.0, 1.25):
    target = losses.extrapolated(logps, strength=strength)
    gap = np.asarray(target) - s - ((t - s) + (strength - 1) * (t - r))
    np.testing.assert_allclose(gap, gap[0], atol=1e-5)
  plain = losses.extrapolated(logps, strength=1.0)
  np.testing.assert_allclose(plain, t, rtol=1e-5)


# At the cliff the optimum leaves exactly the tail, found by iterating it. Kills
# logits that are exchanged.
@pytest.mark.parametrize('mode, start', [(0.98, 0.5), (0.95, 0.7)])
def test_at_the_cliff_the_optimum_leaves_the_tail(mode, start):
  tail = 0.01
  limit = losses.extrapolation_cliff(mode=mode, start=start, tail=tail)
  assert limit > 1
  target = losses.extrapolated(
    {
      'teacher': jnp.log(jnp.array([mode, 1 - mode])),
      'reference': jnp.log(jnp.array([start, 1 - start])),
    },
    strength=limit,
  )
  np.testing.assert_allclose(jnp.exp(target[1]), tail, rtol=1e-4)
  none = losses.extrapolation_cliff(mode=0.9, start=0.9, tail=tail)
  assert none == math.inf


two = {'teacher': jnp.zeros(2), 'reference': jnp.zeros(2)}


@pytest.mark.parametrize(
  'call, part',
  [
    (lambda: losses.top_informative(STATS, fraction=0.0), r'in \(0, 1\], got'),
    (lambda: losses.top_informative(STATS, fraction=1.5), r'in \(0, 1\], got'),
    (
      lambda: losses.top_fraction(STATS, of='reverse_kl', fraction=-0.5),
      r'fraction must be in \(0, 1\], got -0.5',
    ),
    (lambda: losses.proximal_log_ratio(STATS, share=0.0), 'share must be in'),
    (lambda: losses.scaled_advantage(STATS, power=1, mix=2), 'mix must be in'),
    (lambda: losses.scaled_advantage(STATS, power=1, clip=1), 'clip must be'),
    (lambda: losses.entropy_directed(STATS, beta=-1.0), 'beta must be in'),
    (lambda: losses.ahead_of_disagreement(STATS, most=0.5), 'most must be in'),
    (lambda: losses.against_unlikely(STATS, below=0.5, value=1), 'value must'),
    (lambda: losses.before_drop(STATS, segment=0), 'segment must be in'),
    (lambda: losses.before_drop(STATS, of='x'), 'of must be a known stat'),
    (
      lambda: losses.extrapolated(two, strength=1.4, limit=1.285),
      'strength 1.4 is beyond the cliff at 1.285',
    ),
    (
      lambda: losses.extrapolation_cliff(mode=0.98, start=0.5, tail=0.03),
      'nothing could be extrapolated',
    ),
  ],
)
def test_settings_out_of_range_are_refused(call, part):
  with pytest.raises(ValueError, match=part):
    call()


# Kills a mark that promises too much: micro-batches would change the result.
def test_what_they_look_at_is_marked():
  for function, reads in [
    (losses.proximal_log_ratio, 'token'),
    (losses.against_unlikely, 'token'),
    (losses.scaled_advantage, 'token'),
    (losses.entropy_directed, 'row'),
    (losses.future_mean, 'row'),
    (losses.ahead_of_disagreement, 'row'),
    (losses.before_drop, 'row'),
    (losses.whiten, 'group'),
    (losses.top_informative, 'batch'),
    (losses.normalized, 'batch'),
  ]:
    assert reads_of(function).scope == reads
