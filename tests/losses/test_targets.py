"""Targets: mixtures of sides, and what lies between and beyond them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from jopd import losses

V = 9
RNG = np.random.default_rng(0)
LOGITS = {name: RNG.normal(size=(2, V)) * 2 for name in ('a', 'b', 'student')}
LOGPS = {k: losses.log_probs(jnp.asarray(x)) for k, x in LOGITS.items()}
TARGETS = {'mixture': losses.mixture, 'log_linear': losses.log_linear}
ORACLES = {'mixture': oracles.mixture, 'log_linear': oracles.log_linear}
every = pytest.mark.parametrize('name', TARGETS)


def expected(name, weights):
  """Probabilities of each row, by loops."""
  return [
    ORACLES[name](
      [oracles.softmax(LOGITS[role][i]) for role in weights],
      list(weights.values()),
    )
    for i in range(2)
  ]


# a = (.25, .75), b = (.5, .5).
#   mixture .75 a + .25 b:  .1875 + .125 = .3125
#   halfway: sqrt(.125) : sqrt(.375) = 1 : sqrt 3, so 1 / (1 + sqrt 3) = .366025
#   beyond, 1.5 b - .5 a: .5^1.5 / .25^.5 : .5^1.5 / .75^.5 = sqrt 3 : 1
#   sharper, 2 a: 1/16 : 9/16 = 1 : 9
# Kills weights of the wrong side, and one mean for the other.
@pytest.mark.parametrize(
  'name, weights, first',
  [
    ('mixture', {'a': 0.75, 'b': 0.25}, 0.3125),
    ('log_linear', {'a': 0.5, 'b': 0.5}, 0.366025),
    ('log_linear', {'b': 1.5, 'a': -0.5}, 0.633975),
    ('log_linear', {'a': 2}, 0.1),
  ],
)
def test_targets_by_hand(name, weights, first):
  logps = {
    'a': jnp.log(jnp.array([0.25, 0.75])),
    'b': jnp.log(jnp.array([0.5, 0.5])),
  }
  got = jnp.exp(TARGETS[name](logps, weights=weights))
  np.testing.assert_allclose(got, [first, 1 - first], rtol=1e-5)


# Of three sides, the student among them. Kills a side that is left out or
# counts twice, a normaliser over rows, and weights by order instead of name.
@every
@pytest.mark.parametrize(
  'weights',
  [
    {'student': 0.2, 'b': 0.5, 'a': 0.3},
    {'a': 0.9, 'student': 0.1},
    {'b': 1},
  ],
)
def test_targets_equal_the_oracle(name, weights):
  got = jnp.exp(TARGETS[name](LOGPS, weights=weights))
  np.testing.assert_allclose(got, expected(name, weights), rtol=2e-5)


# Kills a score that is not normalised, and a negative weight that is clipped.
def test_extrapolation_equals_the_oracle():
  weights = {'a': 1.25, 'b': -0.25}
  got = losses.log_linear(LOGPS, weights=weights)
  np.testing.assert_allclose(
    jnp.exp(got), expected('log_linear', weights), rtol=2e-5
  )
  np.testing.assert_allclose(jnp.exp(got).sum(-1), np.ones(2), rtol=1e-6)


# A weight of 0 takes a side out. Kills log 0 in a mixture.
@every
def test_all_the_weight_on_one_teacher_is_that_teacher(name):
  got = TARGETS[name](LOGPS, weights={'a': 0.0, 'b': 1.0})
  np.testing.assert_allclose(got, LOGPS['b'], rtol=1e-5)


# Why an interpolation: reverse KL to it pulls as reverse KL to each side does,
# in its share. Kills a mixture in its place, whose pull is another.
def test_the_pull_of_an_interpolation_is_that_of_its_sides():
  def grad(target):
    loss = lambda logits: losses.reverse_kl(losses.log_probs(logits), target)
    return jax.grad(loss)(jnp.asarray(LOGITS['student'][0]))

  a, b = LOGPS['a'][0], LOGPS['b'][0]
  weights = {'a': 0.7, 'b': 0.3}
  between = losses.log_linear({'a': a, 'b': b}, weights=weights)
  np.testing.assert_allclose(
    grad(between), 0.7 * grad(a) + 0.3 * grad(b), atol=2e-6
  )


# The same beyond the teacher. At its optimum p = q the policy gradient of
# G-OPD's advantage, lambda log(teacher / reference) - log(p / reference), is at
# rest: every token has the same advantage. Kills 1 + lambda for lambda.
def test_an_extrapolation_is_the_optimum_of_its_reward():
  amount = 1.25
  weights = {'a': amount, 'b': 1 - amount}
  logp = losses.log_linear(LOGPS, weights=weights)
  teacher, reference = (np.log(oracles.softmax(LOGITS[k][0])) for k in 'ab')
  advantage = amount * (teacher - reference) - (np.asarray(logp[0]) - reference)
  np.testing.assert_allclose(advantage, np.full(V, advantage.mean()), atol=1e-5)


# a = (0, 1/4, 3/4), b = (1/2, 0, 1/2): a mixture has what either has, a product
# what both have, also when a weight is negative or 0. Kills inf - inf, and
# +inf for what a negative weight excludes. Either zero is one: -inf, or what
# another target made of it.
@pytest.mark.parametrize('zero', [-np.inf, -1e9])
def test_exclusion_by_one_side(zero):
  logps = {
    'a': jnp.log(jnp.array([0.25, 0.25, 0.75])).at[0].set(zero),
    'b': jnp.log(jnp.array([0.5, 0.5, 0.5])).at[1].set(zero),
  }
  mean = losses.mixture(logps, weights={'a': 0.5, 'b': 0.5})
  np.testing.assert_allclose(jnp.exp(mean), [0.25, 0.125, 0.625], rtol=1e-6)
  for weights in (
    {'a': 1.25, 'b': -0.25},
    {'a': 0.5, 'b': 0.5},
    {'a': 1, 'b': 0},
  ):
    product = losses.log_linear(logps, weights=weights)
    np.testing.assert_allclose(jnp.exp(product), [0, 0, 1], atol=1e-7)
  alone = losses.mixture(logps, weights={'a': 1.0})
  assert alone[0] == -1e9  # nobody's token: finite, and without mass
  nothing = {k: jnp.full(3, zero) for k in logps}
  for target in TARGETS.values():
    got = target(nothing, weights={'a': 0.5, 'b': 0.5})
    assert np.isfinite(got).all()


# Half the target is the student itself, as a constant: KL(m || p) with m =
# (p + q) / 2 pulls half as much as KL(q || p). Kills a target that gradients
# run through.
def test_a_target_may_lean_on_the_student():
  target = functools.partial(losses.mixture, weights={'student': 0.5, 'a': 0.5})
  objective = losses.divergence(losses.forward_kl, target=target)

  def loss(logits):
    logp = losses.log_probs(logits)
    batch = losses.TokenBatch(
      student_logp=logp,
      logps={'a': LOGPS['a'], 'student': jax.lax.stop_gradient(logp)},
      token=jnp.zeros(2, int),
      sampler_logp=jnp.zeros(2),
    )
    return jnp.sum(objective(batch))

  grad = jax.grad(loss)(jnp.asarray(LOGITS['student']))
  for i in range(2):
    p, q = (oracles.softmax(LOGITS[k][i]) for k in ('student', 'a'))
    # p - m with m = (p + q) / 2.
    np.testing.assert_allclose(grad[i], (p - q) / 2, atol=1e-6)


# Kills a typo that is another target, and weights that are no mean.
@pytest.mark.parametrize(
  'name, weights, message',
  [
    (
      'mixture',
      {'a': 0.5, 'c': 0.5},
      r"named 'c', got \['a', 'b', 'student'\]",
    ),
    ('log_linear', {'math': 1.0}, r"named 'math', got \['a', 'b', 'student'\]"),
    ('mixture', {}, r"weights for some of \['a', 'b', 'student'\], got none"),
    ('log_linear', {}, 'got none'),
    ('mixture', {'a': 0.5, 'b': 0.6}, 'sum to 1, got .* which sum to 1.1'),
    ('mixture', {'a': 1.5, 'b': -0.5}, "must be >= 0 .* 'b': -0.5"),
    ('mixture', {'a': float('nan')}, "weight of 'a' must be a finite number"),
    ('log_linear', {'a': float('inf')}, 'finite number, got inf'),
    ('log_linear', {'a': '0.5'}, "finite number, got '0.5'"),
  ],
)
def test_wrong_weights_are_refused(name, weights, message):
  with pytest.raises(ValueError, match=message):
    TARGETS[name](LOGPS, weights=weights)


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
