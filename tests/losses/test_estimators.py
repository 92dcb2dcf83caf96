"""Sampled losses: their expected gradient, by enumerating the vocabulary."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from jopd import losses

V = 12
RNG = np.random.default_rng(0)
STUDENT, TARGET, SAMPLER = RNG.normal(size=(3, V)) * 1.5
P, Q, MU = (oracles.softmax(x) for x in (STUDENT, TARGET, SAMPLER))
REVERSE = oracles.grad_full_reverse_kl(P, Q)
FORWARD = oracles.grad_full_forward_kl(P, Q)


def every_token(objective, sampler=STUDENT):
  """Loss, and gradient to the student's logits, at each token: [V], [V, V]."""

  def loss(logits, token):
    batch = losses.TokenBatch(
      student_logp=losses.log_probs(logits),
      logps={'teacher': losses.log_probs(jnp.asarray(TARGET))},
      token=token,
      sampler_logp=losses.log_probs(jnp.asarray(sampler))[token],
    )
    return objective(batch)

  one = jax.value_and_grad(loss)
  values, grads = jax.jit(jax.vmap(one, in_axes=(None, 0)))(
    jnp.asarray(STUDENT), jnp.arange(V)
  )
  return np.asarray(values, np.float64), np.asarray(grads, np.float64)


# Trap 11. Kills k3 sold as reverse KL, k2 as forward, k1 as either.
@pytest.mark.parametrize(
  'penalty, expected',
  [(losses.k1, np.zeros(V)), (losses.k2, REVERSE), (losses.k3, FORWARD)],
)
def test_expected_gradients_of_penalties(penalty, expected):
  _, grads = every_token(losses.kl_estimate(penalty))
  np.testing.assert_allclose(P @ grads, expected, atol=1e-6)
  assert np.abs(REVERSE - FORWARD).max() > 0.1  # the two do differ


# log(p/q) = -1 and 3 is k1; k2 = 1/2 and 9/2; k3 = e - 2 and e^-3 + 2.
# Kills p/q for q/p.
def test_penalties_by_hand():
  p, q = jnp.array([-2.0, -1.0]), jnp.array([-1.0, -4.0])
  np.testing.assert_allclose(losses.k1(p, q), [-1, 3], rtol=1e-6)
  np.testing.assert_allclose(losses.k2(p, q), [0.5, 4.5], rtol=1e-6)
  np.testing.assert_allclose(
    losses.k3(p, q), [np.e - 2, np.exp(-3) + 2], rtol=1e-6
  )


# E_p[k1] and E_p[k3] are the reverse KL itself. Kills a k3 without its -1 or
# its log, and a k1 of the other sign.
@pytest.mark.parametrize('penalty', [losses.k1, losses.k3])
def test_k1_and_k3_are_unbiased_values(penalty):
  values, _ = every_token(losses.kl_estimate(penalty))
  np.testing.assert_allclose(P @ values, oracles.reverse_kl(P, Q), rtol=1e-5)


def expected(objectives):
  """name -> sum over tokens of chance * gradient, float64 [V]; one program.

  The tokens are MU's where the name says 'sampler', P's elsewhere. What the
  batch says of the sampler is MU always, to mislead those who must not look.
  """

  def loss(logits, objective, chance):
    rows = lambda x: jnp.broadcast_to(losses.log_probs(x), (V, 1, V))
    batch = losses.TokenBatch(
      student_logp=rows(logits),
      logps={'teacher': rows(jnp.asarray(TARGET))},
      token=jnp.arange(V)[:, None],
      sampler_logp=losses.log_probs(jnp.asarray(SAMPLER))[:, None],
    )
    return jnp.sum(jnp.asarray(chance)[:, None] * objective(batch))

  @jax.jit
  def run(logits):
    return {
      name: jax.grad(loss)(logits, objective, MU if 'sampler' in name else P)
      for name, objective in objectives.items()
    }

  grads = run(jnp.asarray(STUDENT))
  return {name: np.asarray(x, np.float64) for name, x in grads.items()}


SURROGATES = {
  'reinforce': losses.reinforce,
  # Ratios lie in [0.02, 30] here: none is clipped.
  'ppo_clip': functools.partial(losses.ppo_clip, low=1.0, high=100.0),
}
ADVANTAGES = {
  'log_ratio': losses.log_ratio,
  'centered': losses.centered_log_ratio,
  # Log-ratios lie in [-4, 5] here: none is bounded.
  'clip': functools.partial(losses.clip, low=-8.0, high=8.0),
  # Responses of one token: there is nothing to come.
  'discounted_return': functools.partial(losses.discounted_return, gamma=1.0),
  'nested': functools.partial(
    losses.clip,
    low=-8.0,
    advantage=functools.partial(
      losses.discounted_return, gamma=0.5, advantage=losses.centered_log_ratio
    ),
  ),
}


# Traps 12, 13. Every surrogate with every advantage and either old policy has
# exactly the gradient of the reverse KL, over the tokens of its old policy.
# Kills an advantage without a stop-gradient, a wrong sign, a baseline that
# depends on the token, an old policy that is ignored or not stopped, and a clip
# that binds too soon.
def test_every_policy_gradient_is_that_of_the_reverse_kl():
  grads = expected(
    {
      f'{surrogate} {advantage} {old_policy}': losses.policy_gradient(
        SURROGATES[surrogate],
        advantage=ADVANTAGES[advantage],
        old_policy=getattr(losses.old_policies, old_policy),
      )
      for surrogate in SURROGATES
      for advantage in ADVANTAGES
      for old_policy in ('student', 'sampler')
    }
  )
  assert len(grads) == 20
  for name, grad in grads.items():
    np.testing.assert_allclose(grad, REVERSE, atol=2e-6, err_msg=name)
  ratio = P / MU
  assert ratio.min() > 0.02 and ratio.max() < 30
  assert np.abs(np.log(Q / P)).max() < 8


# Each bias that the docs state: it is there, and of the stated size. Kills
# bounds and clips that do not bind, a bound on something other than the
# advantage, and an advantage that is the same for all tokens but still has a
# gradient.
def test_bounds_clips_and_foreign_tokens_are_biases():
  pg = losses.policy_gradient
  bounded = functools.partial(losses.clip, low=-1.0)
  centered = losses.centered_log_ratio
  grads = expected(
    {
      'clip': pg(losses.reinforce, advantage=bounded),
      'bounded sampler': pg(
        losses.reinforce,
        advantage=bounded,
        old_policy=losses.old_policies.sampler,
      ),
      'bounded above': pg(
        losses.reinforce, advantage=functools.partial(losses.clip, high=0.5)
      ),
      'clipped sampler': pg(
        losses.ppo_clip, old_policy=losses.old_policies.sampler
      ),
      'centered clipped sampler': pg(
        losses.ppo_clip,
        advantage=centered,
        old_policy=losses.old_policies.sampler,
      ),
      'tokens of the sampler, old policy student': pg(losses.reinforce),
      'constant advantage': pg(
        losses.reinforce, advantage=lambda stats: -stats.reverse_kl
      ),
    }
  )
  for name, grad in grads.items():
    assert np.abs(grad - REVERSE).max() > 0.02, name
  np.testing.assert_allclose(grads['constant advantage'], 0, atol=1e-6)
  # What the bound makes of it: the advantage of each token, times its score.
  advantage = np.maximum(np.log(Q / P), -1.0)
  np.testing.assert_allclose(
    grads['clip'], -P * (advantage - P @ advantage), atol=1e-6
  )
  np.testing.assert_allclose(grads['bounded sampler'], grads['clip'], atol=2e-6)


# With the student as old policy the value is the estimate of the KL. Kills
# -advantage * log p, of which the gradient is right and the value is not.
@pytest.mark.parametrize('surrogate', [losses.reinforce, losses.ppo_clip])
def test_the_value_of_a_policy_gradient_estimates_the_kl(surrogate):
  values, _ = every_token(losses.policy_gradient(surrogate))
  np.testing.assert_allclose(P @ values, oracles.reverse_kl(P, Q), rtol=1e-5)


# Where the clip binds there is no gradient, where it does not there is that of
# the ratio: -c r (1_v - p). Kills a clip on the student's own ratio of 1, and a
# clip that merely scales the gradient.
def test_the_clip_silences_just_the_tokens_beyond_it():
  objective = losses.policy_gradient(
    losses.ppo_clip, old_policy=losses.old_policies.sampler
  )
  _, grads = every_token(objective, SAMPLER)
  for v in range(V):
    advantage, ratio = np.log(Q[v] / P[v]), P[v] / MU[v]
    silent = (advantage > 0 and ratio > 1.2) or (advantage < 0 and ratio < 0.8)
    score = (np.arange(V) == v) - P
    want = 0 * P if silent else -advantage * ratio * score
    np.testing.assert_allclose(grads[v], want, rtol=1e-4, atol=1e-6)


# NLL of the teacher's tokens descends the forward KL. Kills a wrong sign.
def test_imitating_the_target_descends_the_forward_kl():
  _, grads = every_token(losses.negative_log_likelihood())
  np.testing.assert_allclose(Q @ grads, FORWARD, atol=1e-6)


# Ratio r, advantage c, clip to [0.9, 1.3] and the gradient in log p:
#   r 2.0, c  1: -1.3, ppo_clip, 0      r 2.0, c -1:  2.0, kept,  2
#   r 0.5, c  1: -0.5, kept, -0.5      r 0.5, c -1:  0.9, ppo_clip, 0
# Kills max for min, and low exchanged with high.
def test_the_clip_by_hand():
  ratio = jnp.array([2.0, 2.0, 0.5, 0.5])
  advantage = jnp.array([1.0, -1.0, 1.0, -1.0])
  clip = functools.partial(losses.ppo_clip, low=0.1, high=0.3)
  value, pull_back = jax.vjp(
    lambda logp: clip(logp, jnp.zeros(4), advantage), jnp.log(ratio)
  )
  np.testing.assert_allclose(value, [-1.3, 2.0, -0.5, 0.9], rtol=1e-6)
  grad = pull_back(jnp.ones(4))[0]
  np.testing.assert_allclose(grad, [0, 2.0, -0.5, 0], rtol=1e-6)


# Kills a gradient through the old_policy, the advantage or the target.
@pytest.mark.parametrize(
  'function',
  [losses.reinforce, losses.ppo_clip, losses.k1, losses.k2, losses.k3],
)
def test_only_the_student_gets_a_gradient(function):
  args = (jnp.array(-1.0), jnp.array(-1.1), jnp.array(0.3))
  if function in (losses.k1, losses.k2, losses.k3):
    args = args[:2]
  first, *others = jax.grad(function, argnums=tuple(range(len(args))))(*args)
  assert first != 0
  assert all(g == 0 for g in others)


# Kills NaN from a sampled token that one side excludes.
@pytest.mark.parametrize(
  'function', [losses.k1, losses.k2, losses.k3, losses.reinforce]
)
def test_excluded_tokens_give_finite_gradients(function):
  zero, log_zero = jnp.array(-1.0), jnp.array(-jnp.inf)
  args = (
    (zero, log_zero)
    if function is not losses.reinforce
    else (zero, zero, jnp.array(-1e9))
  )
  value, grad = jax.value_and_grad(function)(*args)
  assert np.isfinite(value) and np.isfinite(grad)
