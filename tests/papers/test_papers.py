"""Functions of single papers: loops, cases by hand, and their limits.

What each becomes at the ends of its settings is the cheapest truth there is:
at one of them it must be plain distillation, or the plain advantage.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jopd import losses
from jopd.losses import old_policies
from jopd.losses.token_stats import reads_of
from jopd.papers import (
  async_opd,
  brts,
  dasd,
  exopd,
  f_opd,
  iw_opd,
  prefix_teach,
  rlad,
  scope,
  teacher_free,
  tip,
  top_d,
)

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


# Rows of a group need not be neighbours. Kills statistics of another group, of
# masked slots and of rows that do not count, a mean over rows' means, a
# sample's deviation, and NaN at rest.
def test_whitened_advantages_have_mean_0_and_deviation_1_in_a_group():
  group = np.array([7, 3, 7, 7])[:, None] * np.ones(MASK.shape, int)
  want = np.zeros(MASK.shape)
  for number in (3, 7):
    own = MASK & (group == number)
    want[own] = (RATIO[own] - RATIO[own].mean()) / RATIO[own].std()
  group = jnp.asarray(group)
  got = top_d.whiten(STATS._replace(group=group))
  equal(got, want, rtol=1e-4, atol=1e-6)
  at_rest = stats_of(0 * RATIO)._replace(group=group)
  equal(top_d.whiten(at_rest), 0 * RATIO)


# Kills a mixture of logs, a floor in another place, and NaN from a token that
# the teacher excludes.
def test_the_ratio_to_a_proximal_teacher():
  proximal = functools.partial(top_d.proximal_log_ratio, STATS)
  equal(proximal(share=0.3), np.log(0.3 * np.exp(RATIO) + 0.7))
  equal(proximal(share=1.0), RATIO)
  excluded = stats_of(np.full(MASK.shape, -1e9))
  got = top_d.proximal_log_ratio(excluded, share=0.3)
  equal(got, np.full(MASK.shape, math.log(0.7)))


# Kills a threshold on the wrong side, and an advantage that reads the teacher.
def test_the_control_needs_no_teacher():
  alone = STATS._replace(target_logp=None)
  got = teacher_free.against_unlikely(alone, below=0.5, value=-2.0)
  equal(got, np.where(np.exp(STUDENT) < 0.5, -2.0, 0.0))
  objective = losses.policy_gradient(
    losses.reinforce,
    advantage=functools.partial(teacher_free.against_unlikely, below=0.1),
  )
  losses.check_objective(objective, kind='policy_gradient', roles=())
  with pytest.raises(ValueError, match='moves a student that equals its targ'):
    losses.check_objective(objective, kind='policy_gradient')


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
  got = dasd.entropy_directed(STATS, beta=3.0, quantile=0.4)
  assert np.all(np.isfinite(got))
  equal(got, ADVANTAGE + want, rtol=1e-4, atol=1e-5)


# Kills what is left of the teacher at beta 0, and a pull where the teacher is
# the student.
@pytest.mark.parametrize('beta, ratio', [(0.0, RATIO), (2.0, 0 * RATIO)])
def test_without_its_pull_it_is_the_plain_advantage(beta, ratio):
  stats = stats_of(ratio)
  got = dasd.entropy_directed(stats, beta=beta)
  equal(got, losses.group_advantage(stats), atol=1e-7)


# Kills a share that contains the token, one over masked slots, weights that
# rise, and 0 / 0 where student and teacher agree.
def test_weights_ahead_of_disagreement_equal_the_loop():
  want = np.ones(MASK.shape)
  for b, t in np.argwhere(MASK):
    apart = [abs(RATIO[b, u]) if MASK[b, u] else 0.0 for u in range(6)]
    want[b, t] = 1 + 0.5 * (1 - sum(apart[:t]) / sum(apart))
  equal(iw_opd.ahead_of_disagreement(STATS), want)
  equal(iw_opd.ahead_of_disagreement(STATS, most=1.0), np.ones(MASK.shape))
  agreed = iw_opd.ahead_of_disagreement(stats_of(0 * RATIO))
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
  got = prefix_teach.before_drop(stats, segment=segment, least=least)
  np.testing.assert_array_equal(np.where(mask, got, 0), want)


# h + q - h q by its formula, sorted. Kills a product or a maximum instead, and
# a threshold over masked slots.
def test_informative_tokens_equal_the_sort():
  h, q = 1 - np.exp(-ENTROPY), 1 - np.exp(-KL)
  score = np.where(MASK, h + q - h * q, -np.inf)
  kept = round(0.4 * MASK.sum())
  want = score >= np.sort(score.ravel())[::-1][kept - 1]
  got = tip.top_informative(STATS, fraction=0.4)
  np.testing.assert_array_equal(got, want)
  every = tip.top_informative(STATS, fraction=1.0)
  np.testing.assert_array_equal(every, MASK)


# At the cliff the optimum leaves exactly the tail, found by iterating it. Kills
# logits that are exchanged.
@pytest.mark.parametrize('mode, start', [(0.98, 0.5), (0.95, 0.7)])
def test_at_the_cliff_the_optimum_leaves_the_tail(mode, start):
  tail = 0.01
  limit = exopd.extrapolation_cliff(mode=mode, start=start, tail=tail)
  assert limit > 1
  target = losses.extrapolated(
    {
      'teacher': jnp.log(jnp.array([mode, 1 - mode])),
      'reference': jnp.log(jnp.array([start, 1 - start])),
    },
    strength=limit,
  )
  np.testing.assert_allclose(jnp.exp(target[1]), tail, rtol=1e-4)
  none = exopd.extrapolation_cliff(mode=0.9, start=0.9, tail=tail)
  assert none == math.inf


# Two prompts, rows of a group apart from one another.
GROUP = np.array([7, 3, 7, 3, 3])
LENGTHS = np.array([4, 1, 3, 2, 4])


def group_stats(**fields):
  each = lambda x: jnp.asarray(x if np.ndim(x) == 2 else np.tile(x, (4, 1)).T)
  known = dict(group=GROUP, source=np.array([0, 1, 2, 0, 1]))
  known |= dict(mask=np.arange(4)[None, :] < LENGTHS[:, None]) | fields
  return losses.TokenStats(**{n: each(x) for n, x in known.items()})


# SCOPE by hand: of wrong rows 1 and 4 perplexities 2 and 8 under the teacher.
# Kills shares of another group, of right rows, and a sum that is not n.
def test_shares_of_a_group_by_hand():
  logp = -np.log(np.array([3.0, 2.0, 5.0, 4.0, 8.0]))
  stats = group_stats(
    target_logp=np.broadcast_to(logp[:, None], (5, 4)),
    reward=np.array([1.0, 0.0, 0.0, 1.0, 0.0]),
  )
  share = functools.partial(scope.group_softmax, stats, of='target_logp')
  wrong = share(rows='wrong')[:, 0]
  np.testing.assert_allclose(wrong, [0, 1.6, 1, 0, 0.4], rtol=1e-6)
  steep = share(rows='wrong', scale=-0.5)[:, 0]  # sqrt(2) to sqrt(8)
  np.testing.assert_allclose(steep, [0, 2 / 3, 1, 0, 4 / 3], rtol=1e-6)
  np.testing.assert_allclose(share(rows='right')[:, 0], [1, 0, 0, 1, 0])
  # Equal perplexities: every row 1.
  level = stats._replace(target_logp=jnp.ones((5, 4)))
  weights = scope.group_softmax(level, of='target_logp')
  np.testing.assert_allclose(weights, 1.0, rtol=1e-6)


# BRTS by hand, its tiers from the last to the first: no row is right,
# the one with the answer is, a plain one is; of several the nearest one.
@pytest.mark.parametrize(
  'reward, source, chosen',
  [
    ([0, 0, 0], [1, 1, 2], 1),
    ([0, 0, 1], [1, 1, 2], 2),
    ([1, 0, 1], [1, 1, 2], 0),
    ([1, 1, 1], [1, 1, 2], 1),
  ],
)
def test_the_best_row_by_hand(reward, source, chosen):
  near = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]], np.float32)
  each = lambda x: jnp.asarray(np.tile(np.asarray(x), (4, 1)).T)
  stats = group_stats()._replace(
    in_top=jnp.asarray(near),
    reward=each(np.float32(reward)),
    source=each(source),
    group=each([4, 4, 4]),
    mask=jnp.ones((3, 4), bool),
  )
  weights = brts.best_row(stats)[:, 0]
  np.testing.assert_array_equal(weights, 3.0 * (np.arange(3) == chosen))


RATIOS = np.array([[0.5, 2.0, 9.0], [1.0, 1.0, 1.0], [3.0, 0.25, 1.5]])
STALENESS = np.array([0.0, 0.0, 3.0])
STALE = losses.TokenStats(
  student_logp=jnp.log(jnp.asarray(0.1 * RATIOS)),
  sampler_logp=jnp.full((3, 3), np.log(0.1)),
  staleness=jnp.asarray(np.tile(STALENESS, (3, 1)).T, jnp.float32),
  mask=jnp.asarray([[True, True, False], [True] * 3, [True] * 3]),
)


# Kills masked tokens that count, a mean over all slots, the root of another
# estimate, and a staleness that starts at one.
def test_freshness_by_the_definition():
  got = f_opd.freshness(STALE, alpha=0.7, least=0.05)
  for row in range(3):
    drifts = [
      r - 1 - np.log(r)
      for r, m in zip(RATIOS[row], STALE.mask[row], strict=True)
      if m
    ]
    fresh = np.exp(-0.7 * np.sqrt(np.mean(drifts))) / (STALENESS[row] + 1)
    np.testing.assert_allclose(got[row], max(fresh - 0.05, 0), rtol=1e-4)


# On-policy it is plain OPD, to the last bit; what is too old is not learnt.
def test_freshness_of_what_is_fresh_is_one():
  np.testing.assert_array_equal(f_opd.freshness(STALE)[1], 1.0)
  old = STALE._replace(staleness=STALE.staleness + 9)
  np.testing.assert_array_equal(f_opd.freshness(old, least=0.2), 0.0)


# Kills: products that take in what is masked, or leave out the token itself.
def test_prefix_importance_is_a_running_product():
  got = async_opd.prefix_importance(STALE, high=2.5)
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
      stats = losses.TokenStats(
        student_logp=own, sampler_logp=old, mask=jnp.ones((1, 2), bool)
      )
      weight = float(async_opd.prefix_importance(stats, high=100.0)[0, 1])
      found += was[a] * mu[a, b] * weight * value[a, b]
  np.testing.assert_allclose(found, wanted, rtol=1e-5)


POLICIES = [np.array(p) for p in ([0.5, 0.2], [0.1, 0.4], [0.4, 0.1])]
ROW = losses.Row(*(jnp.array([x]) for x in (1.0, 0.5, 0.5)))


def batch_of(student_logits, target, sampler, token=0):
  """One token of a vocabulary, sampled with the probability `sampler`."""
  one = lambda x: jnp.asarray(x, jnp.float32)[None]
  return losses.TokenBatch(
    losses.log_probs(student_logits)[None],
    {'teacher': jnp.log(one(target))},
    token=jnp.array([token]),
    sampler_logp=one(np.log(sampler)),
    row=ROW,
  )


def policy_stats(student, sampler, target):
  logp = lambda p: jnp.log(jnp.asarray(p))
  return losses.TokenStats(
    student_logp=logp(student),
    sampler_logp=logp(sampler),
    target_logp=logp(target),
  )


# O^a T^(1-a): sqrt(0.04) = 0.2 on both tokens; at a = 0.25, 0.1^0.25 0.4^0.75 =
# 0.282843 and 0.4^0.25 0.1^0.75 = 0.141421. Kills exponents that are exchanged.
def test_between_sampler_and_target_by_hand():
  stats = policy_stats(*POLICIES)
  for share, expected in ((0.5, [0.2, 0.2]), (0.25, [0.282843, 0.141421])):
    got = jnp.exp(rlad.geometric(stats, sampler=share))
    np.testing.assert_allclose(got, expected, rtol=1e-5)


# S / (O^a T^(1-a)), ppo_clip, times the advantage, in float64; and its gradient
# to the logits, -r A (1_v - p), 0 where the clip binds. Kills a ratio to the
# sampler alone, one that is not differentiated, and a clip of another ratio.
@pytest.mark.parametrize('share', [1.0, 0.5, 0.2])
def test_the_loss_of_a_clipped_advantage_equals_the_loop(share):
  logits = np.array([0.3, -0.4, 0.1])
  p = np.exp(logits) / np.exp(logits).sum()
  q, old = np.array([0.5, 0.1, 0.4]), 0.33
  advantage = 0.5 / (0.5 + 1e-6)
  objective = losses.policy_gradient(
    losses.ppo_clip,
    advantage=losses.group_advantage,
    old_policy=functools.partial(rlad.geometric, sampler=share),
  )
  for token in range(3):
    ratio = p[token] / (old**share * q[token] ** (1 - share))
    loss = lambda x, v=token: objective(batch_of(x, q, old, v))[0]
    value, grad = jax.value_and_grad(loss)(jnp.asarray(logits, jnp.float32))
    want = -min(ratio * advantage, np.clip(ratio, 0.8, 1.2) * advantage)
    np.testing.assert_allclose(value, want, rtol=1e-5)
    score = (np.arange(3) == token) - p
    slope = 0 * p if ratio > 1.2 else -ratio * advantage * score
    np.testing.assert_allclose(grad, slope, rtol=1e-4, atol=1e-6)


# a = 1, or a teacher that is the sampler, is GRPO. Kills an old policy that
# keeps some of the teacher, or NaN from one that excludes the token.
def test_its_ends_are_the_sampler_and_the_target():
  at = lambda stats, share: rlad.geometric(stats, sampler=share)
  stats = policy_stats(*POLICIES)
  np.testing.assert_array_equal(at(stats, 1.0), old_policies.sampler(stats))
  np.testing.assert_array_equal(at(stats, 0.0), stats.target_logp)
  alike = policy_stats(POLICIES[0], *POLICIES[1:2] * 2)
  np.testing.assert_allclose(at(alike, 0.3), alike.sampler_logp, rtol=1e-6)
  logits = jnp.array([0.3, -0.4])
  batch = batch_of(logits, [0.0, 1.0], 0.4)
  of = lambda old_policy: losses.policy_gradient(
    losses.ppo_clip, advantage=losses.group_advantage, old_policy=old_policy
  )(batch)
  grpo = of(functools.partial(rlad.geometric, sampler=1.0))
  np.testing.assert_array_equal(grpo, of(old_policies.sampler))


TWO_LOGPS = {'teacher': jnp.zeros(2), 'reference': jnp.zeros(2)}


@pytest.mark.parametrize(
  'call, part',
  [
    (lambda: tip.top_informative(STATS, fraction=0.0), r'in \(0, 1\], got'),
    (lambda: tip.top_informative(STATS, fraction=1.5), r'in \(0, 1\], got'),
    (lambda: top_d.proximal_log_ratio(STATS, share=0.0), 'share must be in'),
    (lambda: dasd.entropy_directed(STATS, beta=-1.0), 'beta must be in'),
    (lambda: iw_opd.ahead_of_disagreement(STATS, most=0.5), 'most must be in'),
    (
      lambda: teacher_free.against_unlikely(STATS, below=0.5, value=1),
      'value must',
    ),
    (lambda: prefix_teach.before_drop(STATS, segment=0), 'segment must be in'),
    (
      lambda: prefix_teach.before_drop(STATS, of='x'),
      'of must be a known stat',
    ),
    (
      lambda: losses.extrapolated(TWO_LOGPS, strength=1.4, limit=1.285),
      'strength must be at most .* 1.285; got 1.4',
    ),
    (
      lambda: exopd.extrapolation_cliff(mode=0.98, start=0.5, tail=0.03),
      'tail must be at most 1 - mode = 0.02',
    ),
    (lambda: f_opd.freshness(STALE, alpha=-1.0), 'alpha must be in'),
    (lambda: f_opd.freshness(STALE, least=1.0), 'least must be in'),
    (
      lambda: f_opd.freshness(STATS._replace(sampler_logp=STATS.student_logp)),
      "'staleness'",
    ),
    (lambda: async_opd.prefix_importance(STALE, high=0.0), 'high must be in'),
    (lambda: top_d.whiten(STATS), 'stats.group'),
    (
      lambda: scope.group_softmax(
        group_stats()._replace(group=None), of='source'
      ),
      'group',
    ),
    (
      lambda: scope.group_softmax(group_stats(), of='source', rows='some'),
      'rows must be one of',
    ),
    (
      lambda: brts.best_row(group_stats(in_top=np.ones((5, 4)))),
      'reads rewards',
    ),
    (
      lambda: rlad.geometric(policy_stats(*POLICIES), sampler=-0.1),
      r'sampler must be in \[0, 1\], got',
    ),
    (
      lambda: rlad.geometric(policy_stats(*POLICIES), sampler=float('nan')),
      r'sampler must be in \[0, 1\], got',
    ),
    (
      lambda: rlad.geometric(
        policy_stats(*POLICIES)._replace(target_logp=None), sampler=0.5
      ),
      'the term has no teacher',
    ),
  ],
)
def test_wrong_settings_are_refused(call, part):
  with pytest.raises(ValueError, match=part):
    call()


# Kills a declaration that promises too much: gradient accumulation would change
# the result.
def test_what_they_read_is_declared():
  for function, expected in [
    (top_d.proximal_log_ratio, 'token'),
    (teacher_free.against_unlikely, 'token'),
    (rlad.geometric, 'token'),
    (dasd.entropy_directed, 'row'),
    (iw_opd.ahead_of_disagreement, 'row'),
    (prefix_teach.before_drop, 'row'),
    (f_opd.freshness, 'row'),
    (async_opd.prefix_importance, 'row'),
    (top_d.whiten, 'group'),
    (brts.best_row, 'group'),
    (tip.top_informative, 'batch'),
  ]:
    assert reads_of(function).scope == expected, function
  for function in (
    rlad.geometric,
    f_opd.freshness,
    async_opd.prefix_importance,
  ):
    assert reads_of(function).sampler, function
  shares = functools.partial(scope.group_softmax, of='target_logp')
  assert reads_of(shares) == losses.Reads('group', reward=False, sampler=False)
  assert reads_of(functools.partial(shares, rows='right')).reward
  assert reads_of(dasd.entropy_directed).reward
