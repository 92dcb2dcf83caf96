"""Every divergence on every support: value, gradient, and where it rests.

A cell is a divergence on the full vocabulary, or on the top k of one side or
both with one tail. The column on truncated sums of docs/losses.md is BIAS.
"""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from jopd import losses

BETA, ALPHA, POWER = 0.3, 0.2, 0.4
DIVERGENCES = {
  'reverse_kl': losses.reverse_kl,
  'forward_kl': losses.forward_kl,
  'stop_gradient_reverse_kl': losses.stop_gradient_reverse_kl,
  'generalized_reverse_kl': losses.generalized_reverse_kl,
  'generalized_forward_kl': losses.generalized_forward_kl,
  'generalized_jsd': functools.partial(losses.generalized_jsd, beta=BETA),
  'skew_forward_kl': functools.partial(losses.skew_forward_kl, alpha=ALPHA),
  'skew_reverse_kl': functools.partial(losses.skew_reverse_kl, alpha=ALPHA),
  'alpha_divergence': functools.partial(losses.alpha_divergence, alpha=POWER),
  'total_variation': losses.total_variation,
}
ORACLES = {name: getattr(oracles, name) for name in DIVERGENCES} | {
  'generalized_jsd': functools.partial(oracles.generalized_jsd, beta=BETA),
  'skew_forward_kl': functools.partial(oracles.skew_forward_kl, alpha=ALPHA),
  'skew_reverse_kl': functools.partial(oracles.skew_reverse_kl, alpha=ALPHA),
  'alpha_divergence': functools.partial(oracles.alpha_divergence, alpha=POWER),
}

# The gradient at p = q with tail 'drop', in units of the gradient of the
# student's mass M on the support: each summand's slope d/dp at p = q, which is
# the same for all tokens. Where it is not 0, mass flows out of the support (+)
# or into it (-) although the student equals its target. With the full
# vocabulary or another tail the categories sum to one, so M = 1 has gradient 0,
# and the slope does not matter: nothing is biased.
BIAS = {
  'reverse_kl': 1,  # d p log(p/q) = log(p/q) + 1
  'forward_kl': -1,  # d q log(q/p) = -q/p
  'stop_gradient_reverse_kl': 0,  # log(p/q), the 1 stopped
  'generalized_reverse_kl': 0,  # log(p/q) + 1 - 1
  'generalized_forward_kl': 0,  # -q/p + 1
  # m = b q + (1 - b) p, dm/dp = 1 - b:
  # d (b q log(q/m) + (1 - b) p log(p/m))
  #   = -b (1 - b) q/m + (1 - b) (log(p/m) + 1) - (1 - b)^2 p/m
  #   = (1 - b) (log(p/m) + 1 - (b q + (1 - b) p)/m) = (1 - b) log(p/m)
  'generalized_jsd': 0,
  # m = a q + (1 - a) p: d q log(q/m) = -(1 - a) q/m
  'skew_forward_kl': -(1 - ALPHA),
  # m = a p + (1 - a) q: d p log(p/m) = log(p/m) + 1 - a p/m
  'skew_reverse_kl': 1 - ALPHA,
  # d (a p - p^a q^(1 - a)) / (a (1 - a)) = (1 - (q/p)^(1 - a)) / (1 - a)
  'alpha_divergence': 0,
  # sign(p - q) / 2, and 0 at the kink
  'total_variation': 0,
}

FULL = ('full', None)
SUPPORTS = [
  FULL,
  *(
    (of, tail)
    for of in ('student', 'target', 'union', 'intersection')
    for tail in ('drop', 'renormalize', 'bucket')
  ),
]
CELLS = [(name, *support) for name in DIVERGENCES for support in SUPPORTS]
every_cell = pytest.mark.parametrize('name, of, tail', CELLS)

V, K = 12, 5
RNG = np.random.default_rng(3)
# The sides agree in part, so that the four supports are different ones.
TARGETS = RNG.normal(size=(3, V)) * 1.5
STUDENTS = TARGETS + RNG.normal(size=(3, V))


@functools.cache
def computed(of, tail):
  """All divergences on a support, in one program.

  Values and gradients to the student's logits by divergence, first of the pairs
  of STUDENTS and TARGETS, then of TARGETS with themselves.
  """

  def values(student, target):
    logps = losses.log_probs(student), losses.log_probs(target)
    if (of, tail) != FULL:
      logps = losses.top_k(*logps, k=K, of=of, tail=tail)
    each = jnp.stack(
      [divergence(*logps) for divergence in DIVERGENCES.values()]
    )
    return each, each

  students = jnp.asarray(np.concatenate([STUDENTS, TARGETS]))
  targets = jnp.asarray(np.concatenate([TARGETS, TARGETS]))
  gradients = jax.jit(jax.vmap(jax.jacrev(values, has_aux=True)))
  grads, each = jax.device_get(gradients(students, targets))
  return {name: (each[:, i], grads[:, i]) for i, name in enumerate(DIVERGENCES)}


def support_of(student, target, of):
  if of == 'full':
    return list(range(V))
  return oracles.chosen(
    oracles.softmax(student), oracles.softmax(target), K, of
  )


def on(student, target, support, tail):
  """Both sides of one row on a support, float64."""
  p, q = oracles.softmax(student), oracles.softmax(target)
  return oracles.restrict(p, q, support, tail)


# Kills a cell that no other test looks at, and rows that tell nothing: the four
# supports are all different, with two tokens in the smallest at least.
def test_the_grid_is_whole():
  module = losses.divergences
  assert set(DIVERGENCES) == {
    name
    for name, function in inspect.getmembers(module, inspect.isfunction)
    if function.__module__ == module.__name__ and not name.startswith('_')
  }
  assert DIVERGENCES.keys() == BIAS.keys()
  for student, target in zip(STUDENTS, TARGETS, strict=True):
    sizes = [
      len(support_of(student, target, of)) for of in ('union', 'intersection')
    ]
    assert sizes[0] < V and 1 < sizes[1] < K


# Against loops. Kills a slip in a formula, a support or a tail.
@every_cell
def test_the_value_is_that_of_the_definition(name, of, tail):
  values, _ = computed(of, tail)[name]
  for value, student, target in zip(values, STUDENTS, TARGETS, strict=False):
    p, q = on(student, target, support_of(student, target, of), tail)
    np.testing.assert_allclose(value, ORACLES[name](p, q), rtol=2e-5, atol=2e-7)


# Against central differences of the loops, the ids of the support held where
# they are, and the log-ratio of the stop-gradient loss too. Kills a gradient
# through a choice, a tail that is detached, a stop in the wrong place.
@every_cell
def test_the_gradient_is_that_of_the_definition(name, of, tail):
  _, grads = computed(of, tail)[name]
  for grad, student, target in zip(grads, STUDENTS, TARGETS, strict=False):
    support = support_of(student, target, of)
    oracle = ORACLES[name]
    if name == 'stop_gradient_reverse_kl':
      here, _ = on(student, target, support, tail)
      oracle = functools.partial(oracle, at=here)
    expected = np.zeros(V)
    for v in range(V):
      for sign in (1, -1):
        moved = student.copy()
        moved[v] += sign * 1e-5
        value = oracle(*on(moved, target, support, tail))
        expected[v] += sign * value / 2e-5
    np.testing.assert_allclose(grad, expected, atol=2e-6)


# At p = q nothing moves, but for the bias of BIAS. Kills a repair that does not
# repair, and a bias on sums that are whole.
@every_cell
def test_at_the_target_the_gradient_is_the_stated_bias(name, of, tail):
  values, grads = computed(of, tail)[name]
  bias = BIAS[name] if tail == 'drop' else 0
  np.testing.assert_allclose(values[3:], np.zeros(3), atol=5e-7)
  for grad, target in zip(grads[3:], TARGETS, strict=True):
    p, support = oracles.softmax(target), support_of(target, target, of)
    mass = oracles.grad_mass(p, support)
    np.testing.assert_allclose(grad, bias * mass, atol=5e-7)
    assert of == 'full' or np.abs(mass).max() > 1e-2
