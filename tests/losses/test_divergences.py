"""Divergences against hand arithmetic, a float64 oracle, and their laws."""

from collections.abc import Callable
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from jopd import losses


class Case(NamedTuple):
  """A divergence, its oracle, the slope of its summand, what bounds it."""

  divergence: Callable
  oracle: Callable
  slope: Callable  # (p_v, q_v) -> d summand / d p_v, the target constant
  bound: float = math.inf


def mix(share, first, second):
  return share * first + (1 - share) * second


def jsd(beta):
  return Case(
    functools.partial(losses.generalized_jsd, beta=beta),
    functools.partial(oracles.generalized_jsd, beta=beta),
    lambda p, q: (1 - beta) * math.log(p / mix(beta, q, p)),
    -mix(beta, math.log(beta), math.log(1 - beta)),
  )


def skew_forward(alpha):
  return Case(
    functools.partial(losses.skew_forward_kl, alpha=alpha),
    functools.partial(oracles.skew_forward_kl, alpha=alpha),
    lambda p, q: -(1 - alpha) * q / mix(alpha, q, p),
    -math.log(alpha),
  )


def skew_reverse(alpha):
  return Case(
    functools.partial(losses.skew_reverse_kl, alpha=alpha),
    functools.partial(oracles.skew_reverse_kl, alpha=alpha),
    lambda p, q: (
      math.log(p / mix(alpha, p, q)) + 1 - alpha * p / mix(alpha, p, q)
    ),
    -math.log(alpha),
  )


def power(alpha):
  return Case(
    functools.partial(losses.alpha_divergence, alpha=alpha),
    functools.partial(oracles.alpha_divergence, alpha=alpha),
    lambda p, q: (
      (alpha - alpha * p ** (alpha - 1) * q ** (1 - alpha))
      / (alpha * (1 - alpha))
    ),
    1 / (alpha * (1 - alpha)),
  )


CASES = {
  'reverse': Case(
    losses.reverse_kl, oracles.reverse_kl, lambda p, q: math.log(p / q) + 1
  ),
  'forward': Case(losses.forward_kl, oracles.forward_kl, lambda p, q: -q / p),
  'stop gradient': Case(
    losses.stop_gradient_reverse_kl,
    oracles.stop_gradient_reverse_kl,
    lambda p, q: math.log(p / q),
  ),
  'generalized reverse': Case(
    losses.generalized_reverse_kl,
    oracles.generalized_reverse_kl,
    lambda p, q: math.log(p / q),
  ),
  'generalized forward': Case(
    losses.generalized_forward_kl,
    oracles.generalized_forward_kl,
    lambda p, q: 1 - q / p,
  ),
  'jsd 0.1': jsd(0.1),
  'jsd 0.5': jsd(0.5),
  'skew forward 0.1': skew_forward(0.1),
  'skew reverse 0.3': skew_reverse(0.3),
  'alpha 0.2': power(0.2),
  'alpha 0.5': power(0.5),
  'total variation': Case(
    losses.total_variation,
    oracles.total_variation,
    lambda p, q: math.copysign(0.5, p - q),
    1.0,
  ),
}
V = 12  # one shape, one compilation
every = pytest.mark.parametrize('name', CASES)


def random_logits(seed, shape, scale=2.0):
  return np.random.default_rng(seed).normal(size=shape) * scale


@functools.partial(jax.jit, static_argnums=0)
def _value_and_grad(name, student, target, temperature):
  def loss(logits):
    logp = losses.log_probs(logits, temperature=temperature)
    target_logp = losses.log_probs(target, temperature=temperature)
    return CASES[name].divergence(logp, target_logp)

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
# Skew forward, alpha 0.25: KL(q||m) with the same m = 0.190196.
# Skew reverse, alpha 0.75: KL(p||m) with the same m = 0.029211.
# Alpha 1/2: 4 (1 - sqrt(1/16) - sqrt(7/16)) = 4 (1 - 0.25 - 0.661438) =
#   0.354249. Alpha 1/3: p^(1/3) q^(2/3) = 1/2 (4^(-1/3) + (7/4)^(1/3)) =
#   (0.629961 + 1.205071) / 2 = 0.917516; 0.082484 * 9/2 = 0.371178
#   (alpha 2/3: p^(2/3) q^(1/3) = (0.396850 + 1.452196) / 2 gives 0.3396).
# Total variation: (3/8 + 3/8) / 2 = 0.375.
# Kills swapped arguments, and beta or alpha read as its complement.
@pytest.mark.parametrize(
  'divergence, expected',
  [
    (losses.reverse_kl, 0.316377),
    (losses.stop_gradient_reverse_kl, 0.316377),
    (losses.forward_kl, 0.413339),
    (losses.generalized_reverse_kl, 0.316377),
    (losses.generalized_forward_kl, 0.413339),
    (functools.partial(losses.generalized_jsd, beta=0.25), 0.069457),
    (functools.partial(losses.skew_forward_kl, alpha=0.25), 0.190196),
    (functools.partial(losses.skew_reverse_kl, alpha=0.75), 0.029211),
    (losses.alpha_divergence, 0.354249),
    (functools.partial(losses.alpha_divergence, alpha=1 / 3), 0.371178),
    (losses.total_variation, 0.375),
  ],
)
def test_values_by_hand(divergence, expected):
  p, q = jnp.log(jnp.array([0.125, 0.875])), jnp.log(jnp.array([0.5, 0.5]))
  np.testing.assert_allclose(divergence(p, q), expected, atol=2e-6)


# p = (1/8, ...), q = (1/2, ...) cut to one category: 1/8 log(1/4) = -0.173287
# and + 3/8; 1/2 log 4 = 0.693147 and - 3/8; alpha 1/2: 4 (5/16 - 1/4). Kills
# linear terms that are left out: they sum to 0 over a whole vocabulary.
@pytest.mark.parametrize(
  'divergence, expected',
  [
    (losses.stop_gradient_reverse_kl, -0.173287),
    (losses.generalized_reverse_kl, 0.201713),
    (losses.forward_kl, 0.693147),
    (losses.generalized_forward_kl, 0.318147),
    (losses.alpha_divergence, 0.25),
    (losses.total_variation, 0.1875),
  ],
)
def test_truncated_values_by_hand(divergence, expected):
  p, q = jnp.log(jnp.array([0.125])), jnp.log(jnp.array([0.5]))
  np.testing.assert_allclose(divergence(p, q), expected, atol=2e-6)


# Kills any slip in a formula; a mean over V; a hidden T squared.
@every
def test_values_equal_the_oracle(name):
  temperature = 0.7
  student, target = random_logits(0, (3, 11)), random_logits(1, (3, 11))
  got = CASES[name].divergence(
    losses.log_probs(jnp.asarray(student), temperature=temperature),
    losses.log_probs(jnp.asarray(target), temperature=temperature),
  )
  expected = [
    CASES[name].oracle(
      oracles.softmax(s, temperature), oracles.softmax(t, temperature)
    )
    for s, t in zip(student, target, strict=True)
  ]
  np.testing.assert_allclose(got, expected, rtol=2e-5)


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
  expected = CASES[name].oracle(
    oracles.softmax(student[:7]), oracles.softmax(target[:7])
  )
  np.testing.assert_allclose(value, expected, rtol=2e-5)
  np.testing.assert_array_equal(grad[7:], np.zeros(V - 7))


# Kills a KL that may be negative, and a mixture with the wrong side's share.
@every
def test_divergences_are_not_negative(name):
  for seed in range(5):
    value, _ = value_and_grad(
      name, random_logits(seed, V, 4.0), random_logits(seed + 9, V, 4.0)
    )
    assert 0 < value < CASES[name].bound


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


# Kills a skew taken from the other end, where it would be 0.
@pytest.mark.parametrize(
  'skewed, kl',
  [
    (losses.skew_forward_kl, losses.forward_kl),
    (losses.skew_reverse_kl, losses.reverse_kl),
  ],
)
def test_without_skew_they_are_the_two_kls(skewed, kl):
  p = losses.log_probs(jnp.asarray(random_logits(7, V)))
  q = losses.log_probs(jnp.asarray(random_logits(8, V)))
  assert skewed(p, q, alpha=0.0) == kl(p, q)
  near = skewed(p, q, alpha=1e-4)
  assert near < kl(p, q)
  np.testing.assert_allclose(near, kl(p, q), rtol=1e-2)


# On sums of anything, such as a truncated support. Kills exchanged ends, ends
# that are the plain KLs, and cancellation: 1e-3 away the numerator's rounding
# is magnified a thousand times.
def test_the_ends_of_alpha_are_the_generalized_kls():
  p = losses.log_probs(jnp.asarray(random_logits(7, V)))[:5]
  q = losses.log_probs(jnp.asarray(random_logits(8, V)))[:5]
  divergence = losses.alpha_divergence
  for end, near, kl in (
    (0.0, 1e-3, losses.generalized_forward_kl),
    (1.0, 1 - 1e-3, losses.generalized_reverse_kl),
  ):
    assert divergence(p, q, alpha=end) == kl(p, q)
    np.testing.assert_allclose(
      divergence(p, q, alpha=near), kl(p, q), rtol=2e-2
    )
  # p (1 + d) against p: every alpha gives sum p d^2 / 2, here d = 1e-2.
  for alpha in (1e-3, 0.5, 1 - 1e-3):
    value = divergence(p + math.log1p(1e-2), p, alpha=alpha)
    np.testing.assert_allclose(value, jnp.exp(p).sum() * 5e-5, rtol=2e-2)


# Kills a Hellinger distance with another factor.
def test_alpha_of_one_half_is_four_times_the_squared_hellinger_distance():
  student, target = random_logits(7, V), random_logits(8, V)
  p, q = oracles.softmax(student), oracles.softmax(target)
  value, _ = value_and_grad('alpha 0.5', student, target)
  np.testing.assert_allclose(value, 4 * (1 - np.sqrt(p * q).sum()), rtol=1e-5)


# On 5 of the 12 categories. Kills a generalised KL that is another loss than
# the one it is the value of, or may be negative where that is.
def test_the_stop_gradient_loss_descends_the_generalized_one():
  def both(divergence, student, target):
    logps = losses.log_probs(student)[:5], losses.log_probs(target)[:5]
    return divergence(*logps)

  run = jax.jit(jax.value_and_grad(both, argnums=1), static_argnums=0)
  negative = 0
  for seed in range(6):
    sides = [jnp.asarray(random_logits(seed + i, V)) for i in (0, 20)]
    value, grad = run(losses.stop_gradient_reverse_kl, *sides)
    good_value, good_grad = run(losses.generalized_reverse_kl, *sides)
    np.testing.assert_allclose(good_grad, grad, atol=2e-7)
    assert good_value > 0
    negative += value < 0
  assert negative  # or there was nothing to repair


@pytest.mark.parametrize(
  'divergence, setting, wrong, message',
  [
    (
      losses.generalized_jsd,
      'beta',
      -0.1,
      r'beta must be in \[0, 1\], got -0.1',
    ),
    (losses.generalized_jsd, 'beta', 1.5, r'beta must be in \[0, 1\], got 1.5'),
    (losses.skew_forward_kl, 'alpha', 1.0, r'in \[0, 1\), got 1.0: .* itself'),
    (
      losses.skew_forward_kl,
      'alpha',
      -0.1,
      r'alpha must be in \[0, 1\), got -',
    ),
    (losses.skew_reverse_kl, 'alpha', 1.0, r'alpha must be in \[0, 1\), got 1'),
    (losses.skew_reverse_kl, 'alpha', math.nan, r'in \[0, 1\), got nan'),
    (
      losses.alpha_divergence,
      'alpha',
      1.1,
      r'alpha must be in \[0, 1\], got 1',
    ),
    (losses.alpha_divergence, 'alpha', -0.5, r'in \[0, 1\], got -0.5'),
  ],
)
def test_settings_out_of_range_are_refused(divergence, setting, wrong, message):
  p = jnp.log(jnp.array([0.5, 0.5]))
  with pytest.raises(ValueError, match=message):
    divergence(p, p, **{setting: wrong})


# Kills gradients that reach the teacher (jax.grad of the second argument).
@every
def test_no_gradient_reaches_the_target(name):
  p = losses.log_probs(jnp.asarray(random_logits(9, V)))
  q = losses.log_probs(jnp.asarray(random_logits(10, V)))
  grad = jax.grad(CASES[name].divergence, argnums=1)(p, q)
  np.testing.assert_array_equal(grad, np.zeros(V))


# Kills a missing term in a gradient: exact formulas, float64.
@every
def test_full_vocabulary_gradients_equal_the_formulas(name):
  student, target = random_logits(11, V), random_logits(12, V)
  p, q = oracles.softmax(student), oracles.softmax(target)
  slopes = [CASES[name].slope(a, b) for a, b in zip(p, q, strict=True)]
  expected = oracles.on_support(p, range(V), slopes)
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
        CASES[name].oracle(
          oracles.softmax(moved, 2.0), oracles.softmax(target, 2.0)
        )
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
  if name in ('reverse', 'stop gradient', 'generalized reverse'):
    assert value > 5e7  # mass where the target has none: huge, not hidden
    assert grad[0] > 1e7  # and pushed down
  assert value < CASES[name].bound  # whatever is excluded


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


# Trap 31: kills a mixture or a power taken in probability space, log(0) at
# e^-120. The sides are disjoint, so each value is the largest there can be.
@pytest.mark.parametrize(
  'name', [name for name in CASES if CASES[name].bound < math.inf]
)
def test_nothing_underflows(name):
  student = np.full(2053, -120.0)
  target = student.copy()
  student[0] = target[1] = 0.0
  value, grad = value_and_grad(name, student, target)
  assert np.isfinite(value) and np.isfinite(grad).all()
  np.testing.assert_allclose(value, CASES[name].bound, rtol=1e-5)


# Both sides at LOG_ZERO but for one category, alike: trap 30 again, where the
# powers and the mixture are of two zeros. Kills inf - inf and a slope of 0^-a.
@every
def test_equal_zeros_are_at_rest(name):
  logits = np.full(V, -np.inf)
  logits[2] = 3.0
  value, grad = value_and_grad(name, logits, logits)
  np.testing.assert_allclose(value, 0, atol=1e-7)
  np.testing.assert_array_equal(grad, np.zeros(V))


# The kink: to the last bit equal, no push in any direction. One category off
# and the push is of size 1/2, however near. Kills the slope of jnp.abs at 0,
# which is 1 in JAX.
def test_the_kink_of_the_total_variation_is_flat():
  p = jnp.log(jnp.array([0.125, 0.25, 0.625]))
  grad = jax.grad(losses.total_variation)
  np.testing.assert_array_equal(grad(p, p), np.zeros(3))
  near = p.at[1].add(1e-3)
  np.testing.assert_allclose(grad(near, p), [0, 0.125, 0], rtol=2e-3)


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
