"""Token stats against loops, and what they are without a target."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles

from jopd import losses


def oracle(student, target, token):
  p, q = oracles.softmax(student), oracles.softmax(target)
  k = min(16, len(p))
  top_p, top_q = oracles.top(p, k), oracles.top(q, k)
  shared = [v for v in top_p if v in top_q]
  mass, target_mass = sum(p[v] for v in shared), sum(q[v] for v in shared)
  entropies = [-sum(x * np.log(x) for x in side) for side in (p, q)]
  return {
    'student_logp': np.log(p[token]),
    'target_logp': np.log(q[token]),
    'student_entropy': entropies[0],
    'target_entropy': entropies[1],
    'entropy_gap': abs(entropies[0] - entropies[1]),
    'reverse_kl': oracles.reverse_kl(p, q),
    'overlap': len(shared) / k,
    'overlap_mass': mass,
    'overlap_advantage': np.mean(
      [p[v] / mass * np.log(q[v] / target_mass / (p[v] / mass)) for v in shared]
    ),
    'target_mass': sum(p[v] for v in top_q),
  }


# Kills exchanged sides, log-ratios of the wrong token, mass of the student's
# own top, an overlap over something other than 16.
def test_stats_equal_the_oracle():
  rng = np.random.default_rng(0)
  student, target = rng.normal(size=(2, 2, 3, 40)) * 2
  token = rng.integers(40, size=(2, 3))
  sampler_logp = jnp.asarray(rng.normal(size=(2, 3)), jnp.float32)
  stats = losses.token_stats(
    losses.log_probs(jnp.asarray(student)),
    losses.log_probs(jnp.asarray(target)),
    jnp.asarray(token),
    sampler_logp,
  )
  np.testing.assert_array_equal(stats.sampler_logp, sampler_logp)
  for i in range(2):
    for j in range(3):
      expected = oracle(student[i, j], target[i, j], token[i, j])
      for name, value in expected.items():
        np.testing.assert_allclose(
          getattr(stats, name)[i, j], value, rtol=1e-5, err_msg=name
        )


# Kills 0 / 0 where nothing is shared.
def test_nothing_shared_is_no_mass_and_no_advantage():
  logits = jnp.where(jnp.arange(40) < 20, 50.0, -50.0)
  one, other = losses.log_probs(logits), losses.log_probs(-logits)
  stats = losses.token_stats(one, other, jnp.array(0), jnp.array(0.0))
  assert stats.overlap == stats.overlap_mass == stats.overlap_advantage == 0


# p = (1/4, 3/4), q = (1/2, 1/2), token 1: log(1/2) - log(3/4) = -0.405465.
# Kills an advantage of the other sign, or of the KL instead of the token.
def test_the_log_ratio_by_hand():
  p, q = jnp.log(jnp.array([0.25, 0.75])), jnp.log(jnp.array([0.5, 0.5]))
  stats = losses.token_stats(p, q, jnp.array(1), jnp.array(0.0))
  np.testing.assert_allclose(losses.log_ratio(stats), -0.405465, rtol=1e-5)
  np.testing.assert_allclose(stats.student_entropy, 0.562335, rtol=1e-5)
  np.testing.assert_allclose(stats.target_entropy, 0.693147, rtol=1e-5)


# Of 20 tokens, 16 are the student's; the target's largest log-prob among them,
# less their mean, by a sort and a sum. Kills the target's own top 16, a mean
# over the vocabulary, and a difference to the second best.
def test_the_margin_equals_the_loop():
  logits = np.random.default_rng(3).normal(size=(2, 20)) * 2
  logp = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
  top = sorted(range(20), key=lambda v: -logp[0, v])[:16]
  there = [logp[1, v] for v in top]
  stats = losses.token_stats(
    *jnp.asarray(logp, jnp.float32), jnp.array(0), jnp.array(0.0)
  )
  want = max(there) - sum(there) / 16
  np.testing.assert_allclose(stats.margin, want, rtol=1e-5)


# Kills a gradient that leaks into weights or advantages through any stat.
def test_stats_carry_no_gradient():
  def total(student_logp, target_logp, sampler_logp, reward):
    stats = losses.token_stats(
      student_logp,
      target_logp,
      jnp.array(1),
      sampler_logp,
      rollout_logp=sampler_logp,
      row=losses.Row(reward, reward, reward),
    )
    return sum(x for x in stats if x is not None)

  p, one = jnp.log(jnp.array([0.25, 0.75])), jnp.array(-1.0)
  grads = jax.grad(total, argnums=(0, 1, 2, 3))(p, p[::-1], one, one)
  for grad in grads:
    np.testing.assert_array_equal(grad, np.zeros_like(grad))


# Kills made-up zeros: without a target, nothing is said of it.
def test_stats_without_a_target_are_none():
  p = jnp.log(jnp.array([0.25, 0.75]))
  stats = losses.token_stats(p, None, jnp.array(1), jnp.array(-1.0))
  known = {k for k, v in stats._asdict().items() if v is not None}
  assert known == {
    'student_logp',
    'sampler_logp',
    'student_entropy',
    'mask',
  }


# Two prompts of three: (1, 0, 0.5) and (2, 2, 2), by loops. Kills statistics
# over the batch or over the wrong axis, a sample's deviation, rows in another
# order than prompts x group.
def test_the_rewards_of_a_group_equals_the_loops():
  rewards = np.array([[1.0, 0.0, 0.5], [2.0, 2.0, 2.0]])
  expected = []
  for group in rewards:
    mean = sum(group) / 3
    std = (sum((x - mean) ** 2 for x in group) / 3) ** 0.5
    expected += [(reward, mean, std) for reward in group]
  row = losses.group_reward_stats(jnp.asarray(rewards, jnp.float32))
  np.testing.assert_allclose(np.stack(row[:3], axis=1), expected, rtol=1e-6)


# Kills made-up zeros: a loss that reads rewards would take them for failures.
def test_stats_of_unknown_rows_are_none():
  p, zero = jnp.log(jnp.array([0.25, 0.75])), jnp.array(0)
  stats = losses.token_stats(p, p, zero, p[0])
  assert all(getattr(stats, n) is None for n in losses.Row._fields)
