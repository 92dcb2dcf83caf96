"""What the probe finds is what the objective teaches, whoever wrote it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from jopd import losses

V = 6
TOP_2 = functools.partial(losses.top_k, k=2)


def taught(objective, **options):
  """Expected gradients where they differ and where they agree, [S, V] each."""
  both = losses.expected_gradients(objective, **options | {'vocab_size': V})
  return [np.asarray(x, np.float64) for x in both]


@functools.cache
def students():
  """The probabilities of the students, [S, V] each: grad log p_0 = e_0 - p."""
  first = lambda batch: batch.student_logp[..., 0]
  return [np.eye(V)[0] - gradient for gradient in taught(first)]


# E[v grad log p_v] = sum_v p_v v (e_v - p), by loops. Kills: tokens that are
# not weighed by their probability, one token for all rows, the second token's
# loss, a gradient through the probability.
def test_the_expectation_is_over_the_students_own_tokens():
  objective = lambda batch: (
    batch.token * losses.token_logp(batch.student_logp, batch.token)
  )
  for p_rows, got in zip(students(), taught(objective), strict=True):
    for p, gradient in zip(p_rows, got, strict=True):
      expected = np.zeros(V)
      for v in range(V):
        for u in range(V):
          expected[u] += p[v] * v * ((u == v) - p[u])
      np.testing.assert_allclose(gradient, expected, atol=1e-5)


# Kills: a teacher that is not of the same draw, k3 for k2, a sampler's log-prob
# that is not the student's.
def test_estimators_teach_what_they_estimate():
  reverse, _ = taught(losses.divergence(losses.reverse_kl))
  forward, _ = taught(losses.divergence(losses.forward_kl))
  on_policy = losses.policy_gradient(losses.reinforce)
  anchored = losses.policy_gradient(
    losses.ppo_clip, old_policy=losses.old_policies.sampler
  )
  for objective, expected in (
    (losses.kl_estimate(losses.k2), reverse),
    (losses.kl_estimate(losses.k3), forward),
    (on_policy, reverse),
    (anchored, reverse),
  ):
    np.testing.assert_allclose(taught(objective)[0], expected, atol=1e-6)
  assert np.abs(reverse - forward).max() > 0.1  # the two do differ


# At rest a truncated reverse KL has the gradient of the mass on its support,
# and its mirror the opposite. Kills: a student at rest that is not its target.
def test_what_moves_at_rest_is_the_mass():
  support = functools.partial(TOP_2, tail='drop')
  _, p_rows = students()
  expected = [oracles.grad_mass(p, oracles.top(p, 2)) for p in p_rows]
  for divergence, sign in ((losses.reverse_kl, 1), (losses.forward_kl, -1)):
    _, at_rest = taught(losses.divergence(divergence, support=support))
    np.testing.assert_allclose(at_rest, sign * np.stack(expected), atol=1e-5)
  assert np.abs(expected).max(axis=1).min() > 0.01


def mean_of_two(logps):
  """A target that equals its teacher but for rounding."""
  halves = jnp.stack([logps['teacher'], logps['teacher']]) + jnp.log(0.5)
  return jax.nn.logsumexp(halves, axis=0)


def centered(stats):
  """A log-ratio less the mean of its row."""
  ratio = losses.log_ratio(stats)
  return ratio - jnp.mean(ratio, axis=-1, keepdims=True)


def whiten(stats):
  """A log-ratio by the mean and the spread of the batch: 0 / 0 at rest."""
  ratio = losses.log_ratio(stats)
  return (ratio - jnp.mean(ratio)) / (jnp.std(ratio) + 1e-8)


def reinforce(advantage):
  return losses.policy_gradient(losses.reinforce, advantage=advantage)


# Kills one lone token per row or batch, where both advantages are 0, and
# equality to the last bit, where rounding decides what a kink or a quotient is.
@pytest.mark.parametrize(
  'kind, objective',
  [
    ('policy_gradient', reinforce(centered)),
    ('policy_gradient', reinforce(whiten)),
    (
      'divergence',
      losses.divergence(losses.total_variation, target=mean_of_two),
    ),
    (
      'divergence',
      losses.divergence(
        losses.total_variation,
        target=mean_of_two,
        support=functools.partial(TOP_2, tail='renormalize'),
      ),
    ),
  ],
)
def test_unusual_but_sound_objectives_pass(kind, objective):
  losses.check_objective(objective, kind=kind)


# With these weights the target's rounding puts a token of one draw in eight on
# the other side of the kink. Kills: the largest gradient of all draws.
def test_an_accident_of_rounding_does_not_decide():
  weights = {'teacher': 0.25, 'other': 0.75}
  target = functools.partial(losses.mixture, weights=weights)
  losses.check_objective(
    losses.divergence(losses.total_variation, target=target),
    kind='divergence',
    target=target,
    roles=('teacher', 'other'),
  )


# Functions that no list of names could hold. Kills: a check by name.
@pytest.mark.parametrize(
  'kind, objective, reason',
  [
    (
      'policy_gradient',
      reinforce(lambda stats: -stats.reverse_kl),
      'no gradient: its advantage is the same for every token of a place',
    ),
    (
      'policy_gradient',
      reinforce(lambda stats: -stats.student_logp),
      'moves a student that equals its target: its advantage prefers some',
    ),
    (
      'kl_estimate',
      losses.kl_estimate(lambda p, q: p - q),
      'has no gradient: the expected gradient of its estimator is zero',
    ),
    (
      'kl_estimate',
      losses.kl_estimate(lambda p, q: jnp.square(p) + q),
      "moves a student that equals its target: its estimator's derivative",
    ),
    (
      'divergence',
      losses.divergence(lambda p, q: jnp.sum(jnp.exp(p) * p, axis=-1)),
      'moves a student that equals its target: a sum over part',
    ),
    (
      'divergence',
      losses.divergence(lambda p, q: jnp.sum(jnp.exp(q) * q, axis=-1)),
      'has no gradient: its gradient is zero whatever the teacher is',
    ),
  ],
)
def test_functions_of_a_users_own_are_checked_alike(kind, objective, reason):
  with pytest.raises(ValueError, match=reason):
    losses.check_objective(objective, kind=kind)


# Kills: a demonstration that may teach nothing, and rest without a teacher.
def test_what_a_demonstration_may_do():
  entropy = reinforce(lambda stats: -stats.student_logp)
  check = functools.partial(losses.check_objective, kind='policy_gradient')
  check(entropy, demonstration=True)
  check(entropy, roles=())
  nothing = reinforce(lambda stats: stats.student_entropy)
  for options in ({'demonstration': True}, {'roles': ()}):
    with pytest.raises(ValueError, match='has no gradient'):
      check(nothing, **options)


# Kills: one distribution for all roles, with which a target that leans on the
# wrong one would look sound.
def test_each_teacher_has_its_own_distribution():
  def of(role):
    target = functools.partial(losses.teacher, role=role)
    objective = losses.divergence(losses.reverse_kl, target=target)
    return taught(objective, target=target, roles=('a', 'b'))[0]

  assert np.abs(of('a') - of('b')).max(axis=1).min() > 0.01


# A target other than any teacher: sharper, between, beyond, half the student's.
# Kills: rest where all distributions are equal, which the sharper one leaves,
# and full steps to the target, which never come to the one that recedes.
@pytest.mark.parametrize(
  'weights',
  [
    {'teacher': 2.0},
    {'teacher': 0.5, 'other': 0.5},
    {'teacher': 1.25, 'other': -0.25},
    {'teacher': 0.5, 'student': 0.5},
    {'teacher': 2.0, 'student': -1.0},
  ],
)
def test_a_student_at_rest_is_its_target(weights):
  target = functools.partial(losses.log_linear, weights=weights)
  apart, at_rest = taught(
    losses.divergence(losses.reverse_kl, target=target),
    target=target,
    roles=('teacher', 'other'),
  )
  assert np.abs(apart).max() > 0.1
  np.testing.assert_allclose(at_rest, 0, atol=1e-5)


EARNED = np.arange(V) % 2  # by a token, in the enumeration


def of_reward(p):
  """Minus the gradient of the expected reward to the logits, by loops."""
  expected = np.zeros(V)
  mean = sum(p[v] * EARNED[v] for v in range(V))
  for v in range(V):
    expected[v] = -p[v] * (EARNED[v] - mean)
  return expected


# E[-r grad log p]. In a group of two the mean holds half of one's own reward,
# so half is left; divided by the deviation, |r - r'| / 2, all of it is. Kills a
# group that is not sampled with its probability, a partner that is the same
# response, an outcome that is not that of the first token.
@pytest.mark.parametrize('group_size', [2, 8])
def test_rewards_are_enumerated_over_groups(group_size):
  normed = functools.partial(losses.group_advantage, scale='std')
  plain = functools.partial(losses.group_advantage, scale='none')
  for advantage, share in ((losses.reward, 1), (plain, 0.5), (normed, 1)):
    got = taught(reinforce(advantage), group_size=group_size, roles=())
    for p_rows, gradients in zip(students_alone(), got, strict=True):
      expected = share * np.stack([of_reward(p) for p in p_rows])
      np.testing.assert_allclose(gradients, expected, atol=1e-5)


@functools.cache
def students_alone():
  first = lambda batch: batch.student_logp[..., 0]
  return [np.eye(V)[0] - gradient for gradient in taught(first, roles=())]


def modulated(stats):
  """An advantage that the teacher weighs: at rest it is the advantage."""
  advantage = losses.group_advantage(stats)
  return advantage * jnp.exp(jnp.sign(advantage) * losses.log_ratio(stats))


# The advantages of later tokens alone. Kills an enumeration in which what comes
# next does not depend on the first token: it would find no gradient.
def test_an_advantage_of_later_tokens_alone_passes():
  later = lambda stats: jnp.roll(losses.log_ratio(stats), -1, axis=-1)
  losses.check_objective(reinforce(later), kind='policy_gradient', vocab_size=V)


# Kills an at-rest rule that forbids rewards to move the student, also where a
# teacher stands beside them.
@pytest.mark.parametrize('roles', [(), ('teacher',)])
def test_objectives_that_raise_the_reward_pass(roles):
  check = functools.partial(
    losses.check_objective, kind='policy_gradient', roles=roles, vocab_size=V
  )
  check(reinforce(losses.reward), group_size=1)
  for advantage in (losses.reward, losses.group_advantage):
    check(reinforce(advantage), group_size=4)
    anchored = functools.partial(losses.ppo_clip, low=0.2, high=0.28)
    check(
      losses.policy_gradient(
        anchored, advantage=advantage, old_policy=losses.old_policies.sampler
      ),
      group_size=4,
    )
  if roles:
    check(reinforce(modulated), group_size=4)
    add = lambda s: losses.group_advantage(s) + 0.1 * losses.log_ratio(s)
    check(reinforce(add), group_size=4)


# Kills a check by name: the first two are functions of one's own.
@pytest.mark.parametrize(
  'advantage, group_size, reason',
  [
    (lambda stats: -stats.reward, 4, 'reads rewards and does not raise them'),
    (lambda stats: stats.group_std, 4, 'reads rewards and does not raise'),
    (
      lambda stats: 0 * stats.reward,
      4,
      'has no gradient: its advantage is the',
    ),
    (losses.group_advantage, 1, 'has no gradient: with group_size 1 a respon'),
  ],
)
def test_objectives_that_do_not_raise_the_reward_are_refused(
  advantage, group_size, reason
):
  check = functools.partial(
    losses.check_objective,
    reinforce(advantage),
    kind='policy_gradient',
    group_size=group_size,
  )
  with pytest.raises(ValueError, match=reason):
    check()
  if 'does not raise' in reason:
    check(demonstration=True)
