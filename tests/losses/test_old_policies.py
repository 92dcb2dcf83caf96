"""Anchors: by hand, and what they become at their ends."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jopd import losses
from jopd.losses import old_policies, trial

STUDENT, SAMPLER, TARGET = np.array([[0.5, 0.2], [0.1, 0.4], [0.4, 0.1]])
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


def stats_of(student, sampler, target):
  logp = lambda p: jnp.log(jnp.asarray(p))
  return losses.TokenStats(
    student_logp=logp(student),
    sampler_logp=logp(sampler),
    target_logp=logp(target),
  )


# O^a T^(1-a): sqrt(0.04) = 0.2 on both tokens; at a = 0.25, 0.1^0.25 0.4^0.75 =
# 0.282843 and 0.4^0.25 0.1^0.75 = 0.141421. Kills exponents that are exchanged.
def test_between_sampler_and_target_by_hand():
  stats = stats_of(STUDENT, SAMPLER, TARGET)
  for share, expected in ((0.5, [0.2, 0.2]), (0.25, [0.282843, 0.141421])):
    got = jnp.exp(old_policies.geometric(stats, sampler=share))
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
    old_policy=functools.partial(old_policies.geometric, sampler=share),
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


# a = 1, or a teacher that is the sampler, is GRPO. Kills an old_policy that keeps
# some of the teacher, or NaN from one that excludes the token.
def test_its_ends_are_the_sampler_and_the_target():
  at = lambda stats, share: old_policies.geometric(stats, sampler=share)
  stats = stats_of(STUDENT, SAMPLER, TARGET)
  np.testing.assert_array_equal(at(stats, 1.0), old_policies.sampler(stats))
  np.testing.assert_array_equal(at(stats, 0.0), stats.target_logp)
  alike = stats_of(STUDENT, SAMPLER, SAMPLER)
  np.testing.assert_allclose(at(alike, 0.3), alike.sampler_logp, rtol=1e-6)
  logits = jnp.array([0.3, -0.4])
  batch = batch_of(logits, [0.0, 1.0], 0.4)
  of = lambda old_policy: losses.policy_gradient(
    losses.ppo_clip, advantage=losses.group_advantage, old_policy=old_policy
  )(batch)
  grpo = of(functools.partial(old_policies.geometric, sampler=1.0))
  np.testing.assert_array_equal(grpo, of(old_policies.sampler))


@pytest.mark.parametrize('share', [-0.1, 1.1, float('nan')])
def test_an_anchor_outside_is_refused(share):
  with pytest.raises(ValueError, match=r'sampler must be in \[0, 1\], got'):
    old_policies.geometric(stats_of(STUDENT, SAMPLER, TARGET), sampler=share)


def test_an_anchor_without_its_target_is_refused():
  stats = stats_of(STUDENT, SAMPLER, TARGET)._replace(target_logp=None)
  with pytest.raises(ValueError, match='there is no teacher'):
    old_policies.geometric(stats, sampler=0.5)


# Kills a list of names.
def test_who_reads_the_sampler_is_found_out():
  between = lambda share: functools.partial(
    old_policies.geometric, sampler=share
  )
  assert trial.reads_sampler(between(0.5))
  assert not trial.reads_sampler(between(0.0))
  assert trial.reads_sampler(lambda stats: 2 * stats.sampler_logp)
