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


# Trap 11. Kills k3 sold as reverse KL, and k2 as forward.
@pytest.mark.parametrize(
  'penalty, expected', [(losses.k2, REVERSE), (losses.k3, FORWARD)]
)
def test_expected_gradients_of_penalties(penalty, expected):
  _, grads = every_token(losses.sampled(penalty))
  np.testing.assert_allclose(P @ grads, expected, atol=1e-6)
  assert np.abs(REVERSE - FORWARD).max() > 0.1  # the two do differ


# log(p/q) = -1 and 3: k2 = 1/2 and 9/2; k3 = e - 2 and e^-3 + 2.
# Kills p/q for q/p.
def test_penalties_by_hand():
  p, q = jnp.array([-2.0, -1.0]), jnp.array([-1.0, -4.0])
  np.testing.assert_allclose(losses.k2(p, q), [0.5, 4.5], rtol=1e-6)
  np.testing.assert_allclose(
    losses.k3(p, q), [np.e - 2, np.exp(-3) + 2], rtol=1e-6
  )


# E_p[k3] is the reverse KL itself. Kills a k3 without its -1 or its log.
def test_k3_is_an_unbiased_value():
  values, _ = every_token(losses.sampled(losses.k3))
  np.testing.assert_allclose(P @ values, oracles.reverse_kl(P, Q), rtol=1e-5)


# Traps 12, 13. Kills a credit without a stop-gradient, a wrong sign, and a
# credit that does not depend on the token.
@pytest.mark.parametrize('surrogate', [losses.reinforce, losses.clipped])
def test_the_policy_gradient_is_that_of_the_reverse_kl(surrogate):
  values, grads = every_token(losses.policy_gradient(surrogate))
  np.testing.assert_allclose(P @ grads, REVERSE, atol=1e-6)
  # Anchored to the student its value is the estimate of the KL, to be read.
  np.testing.assert_allclose(P @ values, oracles.reverse_kl(P, Q), rtol=1e-5)


# Tokens of another policy, weighted by importance: exact again. Kills an anchor
# that is ignored, or not stopped.
def test_the_sampler_anchor_corrects_for_the_sampler():
  objective = losses.policy_gradient(losses.reinforce, anchor='sampler')
  _, grads = every_token(objective, SAMPLER)
  np.testing.assert_allclose(MU @ grads, REVERSE, atol=1e-6)
  _, uncorrected = every_token(losses.policy_gradient(losses.reinforce))
  assert np.abs(MU @ uncorrected - REVERSE).max() > 0.05


# NLL of the teacher's tokens descends the forward KL. Kills a wrong sign.
def test_imitating_the_target_descends_the_forward_kl():
  _, grads = every_token(losses.negative_log_likelihood())
  np.testing.assert_allclose(Q @ grads, FORWARD, atol=1e-6)


# Ratio r, credit c, clip to [0.9, 1.3] and the gradient in log p:
#   r 2.0, c  1: -1.3, clipped, 0      r 2.0, c -1:  2.0, kept,  2
#   r 0.5, c  1: -0.5, kept, -0.5      r 0.5, c -1:  0.9, clipped, 0
# Kills max for min, and low exchanged with high.
def test_the_clip_by_hand():
  ratio = jnp.array([2.0, 2.0, 0.5, 0.5])
  credit = jnp.array([1.0, -1.0, 1.0, -1.0])
  clip = functools.partial(losses.clipped, low=0.1, high=0.3)
  value, pull_back = jax.vjp(
    lambda logp: clip(logp, jnp.zeros(4), credit), jnp.log(ratio)
  )
  np.testing.assert_allclose(value, [-1.3, 2.0, -0.5, 0.9], rtol=1e-6)
  grad = pull_back(jnp.ones(4))[0]
  np.testing.assert_allclose(grad, [0, 2.0, -0.5, 0], rtol=1e-6)


# Kills a gradient through the anchor, the credit or the target.
@pytest.mark.parametrize(
  'function', [losses.reinforce, losses.clipped, losses.k2, losses.k3]
)
def test_only_the_student_gets_a_gradient(function):
  args = (jnp.array(-1.0), jnp.array(-1.1), jnp.array(0.3))
  if function in (losses.k2, losses.k3):
    args = args[:2]
  first, *others = jax.grad(function, argnums=tuple(range(len(args))))(*args)
  assert first != 0
  assert all(g == 0 for g in others)


# Kills NaN from a sampled token that one side excludes.
@pytest.mark.parametrize('function', [losses.k2, losses.k3, losses.reinforce])
def test_excluded_tokens_give_finite_gradients(function):
  zero, log_zero = jnp.array(-1.0), jnp.array(-jnp.inf)
  args = (
    (zero, log_zero)
    if function is not losses.reinforce
    else (zero, zero, jnp.array(-1e9))
  )
  value, grad = jax.value_and_grad(function)(*args)
  assert np.isfinite(value) and np.isfinite(grad)


def test_an_unknown_anchor_is_refused():
  with pytest.raises(ValueError, match="anchor must be 'student' or 'sampler'"):
    losses.policy_gradient(losses.reinforce, anchor='teacher')
