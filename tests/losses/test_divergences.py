"""Divergences against hand arithmetic, a float64 oracle, and their laws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from jopd import losses

JSDS = {
  f'jsd {beta}': functools.partial(losses.generalized_jsd, beta=beta)
  for beta in (0.1, 0.5)
}
DIVERGENCES = {
  'reverse': losses.reverse_kl,
  'forward': losses.forward_kl,
  'stop gradient': losses.stop_gradient_reverse_kl,
  **JSDS,
}
ORACLES = {
  'reverse': oracles.reverse_kl,
  'forward': oracles.forward_kl,
  'stop gradient': oracles.reverse_kl,
  **{
    f'jsd {beta}': functools.partial(oracles.generalized_jsd, beta=beta)
    for beta in (0.1, 0.5)
  },
}
V = 12  # one shape, one compilation
every = pytest.mark.parametrize('name', DIVERGENCES)


def random_logits(seed, shape, scale=2.0):
  return np.random.default_rng(seed).normal(size=shape) * scale


@functools.partial(jax.jit, static_argnums=0)
def _value_and_grad(name, student, target, temperature):
  def loss(logits):
    logp = losses.log_probs(logits, temperature=temperature)
    target_logp = losses.log_probs(target, temperature=temperature)
    return DIVERGENCES[name](logp, target_logp)

  return jax.value_and_grad(loss)(student)


def value_and_grad(name, student, target, temperature=1.0):
  """Value of one row and its gradient to the student's logits."""
  student, target = jnp.asarray(student), jnp.asarray(target)
  return jax.device_get(_value_and_grad(name, student, target, temperature))


# p = (1/8, 7/8), q = (1/2, 1/2).
#   KL(p||q) = 1/8 log(1/4) + 7/8 log(7/4) = -0.173287 + 0.489664 = 0.316377
#   KL(q||p) = 1/2 log 4 + 1/2 log(4/7)    =  0.693147 - 0.279808 = 0.413339
# Beta 0.25: m = 0.25 q + 0.75 p = (7/32, 25/32),
#   KL(q||m) = 1/2 log(16/7) + 1/2 log(16/25) = 0.413339 - 0.223144 = 0.190196
#   KL(p||m) = 1/8 log(4/7) + 7/8 log(28/25) = -0.069952 + 0.099163 = 0.029211
#   0.25 * 0.190196 + 0.75 * 0.029211 = 0.069457   (beta 0.75 gives 0.0749)
# Kills swapped arguments, and beta read as 1 - beta.
@pytest.mark.parametrize(
  'divergence, expected',
  [
    (losses.reverse_kl, 0.316377),
    (losses.stop_gradient_reverse_kl, 0.316377),
    (losses.forward_kl, 0.413339),
    (functools.partial(losses.generalized_jsd, beta=0.25), 0.069457),
  ],
)
def test_values_by_hand(divergence, expected):
  p, q = jnp.log(jnp.array([0.125, 0.875])), jnp.log(jnp.array([0.5, 0.5]))
  np.testing.assert_allclose(divergence(p, q), expected, atol=2e-6)


# Kills any slip in a formula; a mean over V; a hidden T squared.
@every
@pytest.mark.parametrize('temperature', [0.7, 1.0, 2.0])
def test_values_equal_the_oracle(name, temperature):
  student, target = random_logits(0, (3, 11)), random_logits(1, (3, 11))
  got = DIVERGENCES[name](
    losses.log_probs(jnp.asarray(student), temperature=temperature),
    losses.log_probs(jnp.asarray(target), temperature=temperature),
  )
  expected = [
    ORACLES[name](
      oracles.softmax(s, temperature), oracles.softmax(t, temperature)
    )
    for s, t in zip(student, target, strict=True)
  ]
  np.testing.assert_allclose(got, expected, rtol=2e-5)


# Kills a temperature on one side only, and defaults that add another loss.
@every
@pytest.mark.parametrize('temperature', [0.3, 1.0, 4.0])
def test_identical_models_cost_nothing(name, temperature):
  logits = random_logits(2, V, scale=5.0)
  value, grad = value_and_grad(name, logits, logits, temperature)
  np.testing.assert_allclose(value, 0, atol=1e-6)
  np.testing.assert_allclose(grad, np.zeros(V), atol=1e-6)


# Kills logits compared without a normaliser.
@every
def test_a_constant_added_to_one_models_logits_moves_nothing(name):
  student, target = random_logits(3, V), random_logits(4, V)
  value, grad = value_and_grad(name, student, target)
  moved, moved_grad = value_and_grad(name, student + 30.0, target)
  np.testing.assert_allclose(moved, value, rtol=1e-4)
  np.testing.assert_allclose(moved_grad, grad, atol=2e-6)
  moved, _ = value_and_grad(name, student, target - 30.0)
  np.testing.assert_allclose(moved, value, rtol=1e-4)


# Kills a mean over V: a category that neither side uses must add nothing.
@every
def test_categories_without_mass_add_nothing(name):
  student, target = random_logits(5, V), random_logits(6, V)
  student[7:] = target[7:] = -np.inf
  value, grad = value_and_grad(name, student, target)
  expected = ORACLES[name](
    oracles.softmax(student[:7]), oracles.softmax(target[:7])
  )
  np.testing.assert_allclose(value, expected, rtol=2e-5)
  np.testing.assert_array_equal(grad[7:], np.zeros(V - 7))


# Kills a KL that may be negative, and a JSD that is not bounded by its entropy.
@every
def test_divergences_are_not_negative(name):
  for seed in range(5):
    value, _ = value_and_grad(
      name, random_logits(seed, V, 4.0), random_logits(seed + 9, V, 4.0)
    )
    assert value > 0
  if name == 'jsd 0.5':
    assert value < np.log(2)


# Kills exchanged ends of beta, and the value 0 that the formula has there.
def test_the_ends_of_beta_are_the_two_kls():
  p = losses.log_probs(jnp.asarray(random_logits(7, V)))
  q = losses.log_probs(jnp.asarray(random_logits(8, V)))
  forward, reverse = losses.forward_kl(p, q), losses.reverse_kl(p, q)
  assert forward > 1.05 * reverse  # not the same number
  jsd = losses.generalized_jsd
  assert jsd(p, q, beta=0.0) == forward
  assert jsd(p, q, beta=1.0) == reverse
  # The KLs are the slopes at the ends.
  np.testing.assert_allclose(jsd(p, q, beta=1e-3) / 1e-3, forward, rtol=1e-2)
  np.testing.assert_allclose(
    jsd(p, q, beta=1 - 1e-3) / 1e-3, reverse, rtol=1e-2
  )


@pytest.mark.parametrize('beta', [-0.1, 1.5])
def test_beta_outside_the_unit_interval_is_refused(beta):
  p = jnp.log(jnp.array([0.5, 0.5]))
  with pytest.raises(ValueError, match=r'beta must be in \[0, 1\]'):
    losses.generalized_jsd(p, p, beta=beta)


# Kills gradients that reach the teacher (jax.grad of the second argument).
@every
def test_no_gradient_reaches_the_target(name):
  p = losses.log_probs(jnp.asarray(random_logits(9, V)))
  q = losses.log_probs(jnp.asarray(random_logits(10, V)))
  grad = jax.grad(DIVERGENCES[name], argnums=1)(p, q)
  np.testing.assert_array_equal(grad, np.zeros(V))


# Kills a missing term in a gradient: exact formulas, float64.
@every
def test_full_vocabulary_gradients_equal_the_formulas(name):
  student, target = random_logits(11, V), random_logits(12, V)
  p, q = oracles.softmax(student), oracles.softmax(target)
  beta = float(name.split()[1]) if name in JSDS else None
  if name == 'forward':
    expected = oracles.grad_full_forward_kl(p, q)
  elif beta is None:
    expected = oracles.grad_full_reverse_kl(p, q)
  else:
    expected = oracles.grad_truncated_jsd(p, q, range(V), beta)
  _, grad = value_and_grad(name, student, target)
  np.testing.assert_allclose(grad, expected, atol=1e-6)


# Trap 24: kills a loss whose gradient is of another temperature convention.
@every
def test_finite_differences_agree_at_another_temperature(name):
  student, target = random_logits(13, V), random_logits(14, V)
  _, grad = value_and_grad(name, student, target, temperature=2.0)
  step = 1e-4
  for v in range(V):
    side = []
    for sign in (1, -1):
      moved = student.copy()
      moved[v] += sign * step
      side.append(
        ORACLES[name](oracles.softmax(moved, 2.0), oracles.softmax(target, 2.0))
      )
    expected = (side[0] - side[1]) / (2 * step)
    np.testing.assert_allclose(grad[v], expected, atol=2e-6)


# Trap 30: kills 0 * inf, in the value or on the way back.
@every
def test_minus_infinity_gives_finite_values_and_gradients(name):
  student, target = np.zeros(V), np.zeros(V)
  student[[1, 3]] = target[[0, 3]] = -np.inf
  value, grad = value_and_grad(name, student, target)
  assert np.isfinite(value) and np.isfinite(grad).all()
  assert grad[1] == grad[3] == 0
  if name == 'reverse':  # mass where the target has none: huge, not hidden
    assert value > 5e7
    assert grad[0] > 1e7  # and pushed down
  if name == 'jsd 0.5':  # bounded, whatever is excluded
    assert value < np.log(2)


# The same where the categories without mass are the target's alone, which no
# divergence but the reverse one is infinite for. Kills a floor like -10.
def test_a_target_of_one_token_is_learnt():
  student, target = np.zeros(V), np.full(V, -np.inf)
  target[1] = 0.0
  value, grad = value_and_grad('forward', student, target)
  np.testing.assert_allclose(value, np.log(V), rtol=1e-6)
  np.testing.assert_allclose(grad, 1 / V - np.eye(V)[1], atol=1e-6)


# Trap 21: kills a floor on log-probs, which takes the gradient from the very
# tokens that matter: p - q = -0.9 at a token the student all but excludes.
def test_a_hopeless_token_keeps_its_gradient():
  student = np.array([0.0, -60.0])
  target = np.log([0.1, 0.9])
  _, grad = value_and_grad('forward', student, target)
  np.testing.assert_allclose(grad, [0.9, -0.9], atol=1e-5)


# Trap 31: kills a mixture taken in probability space, log(0) at e^-120.
@pytest.mark.parametrize('name', JSDS)
def test_the_mixture_does_not_underflow(name):
  student = np.full(2053, -120.0)
  target = student.copy()
  student[0] = target[1] = 0.0
  value, grad = value_and_grad(name, student, target)
  assert np.isfinite(value) and np.isfinite(grad).all()
  beta = float(name.split()[1])
  # Disjoint: beta log(1 / beta) + (1 - beta) log(1 / (1 - beta)).
  expected = -beta * np.log(beta) - (1 - beta) * np.log(1 - beta)
  np.testing.assert_allclose(value, expected, rtol=1e-5)


# Kills exp without a maximum subtracted.
@every
def test_logits_of_ten_thousand_are_fine(name):
  student, target = np.zeros(V), np.zeros(V)
  student[:2], target[:2] = [1e4, -1e4], [1e4 - 1, 1e4]
  value, grad = value_and_grad(name, student, target)
  assert np.isfinite(value) and np.isfinite(grad).all()


# Trap 32: kills statistics in bfloat16. True KL of this pair: 5e-5 nats.
def test_bfloat16_logits_get_float32_statistics():
  rng = np.random.default_rng(0)
  base = rng.normal(size=4000)
  student = jnp.asarray(base, jnp.bfloat16)
  target = jnp.asarray(base + 0.01 * rng.normal(size=4000), jnp.bfloat16)
  got = losses.reverse_kl(losses.log_probs(student), losses.log_probs(target))
  assert got.dtype == jnp.float32
  expected = oracles.reverse_kl(
    oracles.softmax(np.asarray(student, np.float64)),
    oracles.softmax(np.asarray(target, np.float64)),
  )
  np.testing.assert_allclose(got, expected, rtol=0.02)
