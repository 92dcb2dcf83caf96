"""Whole responses, all of them: what a token teaches through its successors.

A student and a teacher over three tokens have a table of logits for each of
the prefixes of up to three tokens. All responses can be enumerated, and with
them the gradient of the sequence's reverse KL,

  E sum over t of (sum over u >= t of r_u) s_t,

where r = log p - log q and s_t = grad log p(y_t). Its part u = t is the token
level's, E sum over t of grad KL_t with the prefixes held fixed; the rest is the
coupling, which the token level drops.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from jopd import losses

V, T = 3, 3
PREFIXES = [
  y for n in range(T) for y in itertools.product(range(V), repeat=n)
]  # 1 + 3 + 9
RNG = np.random.default_rng(0)
STUDENT, TEACHER = RNG.normal(size=(2, len(PREFIXES), V)) * 1.2
ENDS = [None, 0]  # no token ends a response, or token 0 does


def responses(end):
  """All of them; those that end early are shorter."""
  found = set()
  for y in itertools.product(range(V), repeat=T):
    found.add(y[: y.index(end) + 1] if end in y else y)
  return sorted(found)


def place(y, t):
  """The row of the tables for the prefix before token t."""
  return PREFIXES.index(tuple(y[:t]))


def log_tables(logits):
  return np.array([oracles.log_softmax(row) for row in logits])


def chance(y, logp):
  return np.exp(sum(logp[place(y, t), y[t]] for t in range(len(y))))


def sequence_kl(student, end):
  """KL over whole responses, sum over y of P(y) log P(y) / Q(y)."""
  p, q = log_tables(student), log_tables(TEACHER)
  total = 0.0
  for y in responses(end):
    at_y = chance(y, p)
    total += at_y * np.log(at_y / chance(y, q))
  return total


def finite_differences(function, x, step=1e-5):
  grad = np.zeros(x.shape)
  for i in np.ndindex(*x.shape):
    up, down = x.copy(), x.copy()
    up[i] += step
    down[i] -= step
    grad[i] = (function(up) - function(down)) / (2 * step)
  return grad


def token_level(end, grad=oracles.grad_full_reverse_kl):
  """Sum over prefixes of their chance * the gradient at that place alone."""
  p, q = log_tables(STUDENT), log_tables(TEACHER)
  total = np.zeros(STUDENT.shape)
  for i, prefix in enumerate(PREFIXES):
    if end not in prefix:
      total[i] = chance(prefix, p) * grad(np.exp(p[i]), np.exp(q[i]))
  return total


def coupling(end, gamma):
  """E sum over t and u > t of gamma^(u - t) r_u s_t."""
  p, q = log_tables(STUDENT), log_tables(TEACHER)
  total = np.zeros(STUDENT.shape)
  for y in responses(end):
    for t in range(len(y)):
      score = (np.arange(V) == y[t]) - np.exp(p[place(y, t)])
      for u in range(t + 1, len(y)):
        ratio = (p - q)[place(y, u), y[u]]
        total[place(y, t)] += chance(y, p) * gamma ** (u - t) * ratio * score
  return total


def to_come_above_own_mean(stats, *, gamma):
  """The advantages to come, over a baseline for the token's own alone."""
  return losses.discounted_return(stats, gamma=gamma) + stats.reverse_kl


def reinforce(advantage, /, **kwargs):
  advantage = functools.partial(advantage, **kwargs)
  return losses.policy_gradient(losses.reinforce, advantage=advantage)


CENTERED = losses.centered_log_ratio
BOUNDED = functools.partial(losses.clip, low=-0.5)
OBJECTIVES = {
  'reverse_kl': losses.divergence(losses.reverse_kl),
  'forward_kl': losses.divergence(losses.forward_kl),
  'k2': losses.kl_estimate(losses.k2),
  'own': reinforce(losses.log_ratio),
  'to come, 0': reinforce(losses.discounted_return, gamma=0.0),
  'to come, 0.5': reinforce(losses.discounted_return, gamma=0.5),
  'to come, 1': reinforce(losses.discounted_return, gamma=1.0),
  'centered': reinforce(CENTERED),
  'centered to come, 0.5': reinforce(
    losses.discounted_return, gamma=0.5, advantage=CENTERED
  ),
  'centered to come, 1': reinforce(
    losses.discounted_return, gamma=1.0, advantage=CENTERED
  ),
  'to come above own mean': reinforce(to_come_above_own_mean, gamma=1.0),
  'bounded to come': reinforce(
    losses.discounted_return, gamma=1.0, advantage=BOUNDED
  ),
}


@functools.partial(jax.jit, static_argnums=0)
def every_gradient(name, logits, token, row, mask):
  """The gradient of a response's summed loss, for each: [responses, 13, V]."""

  def loss(logits, token, row, mask):
    logp = losses.log_probs(logits)
    batch = losses.TokenBatch(
      student_logp=logp[row][None],
      logps={'teacher': losses.log_probs(jnp.asarray(TEACHER))[row][None]},
      token=token[None],
      sampler_logp=jnp.zeros((1, T)),
    )
    terms = {'a': losses.Term(OBJECTIVES[name])}
    count = jnp.sum(mask)
    return count * losses.distill_loss(
      batch, terms, mask=mask[None], count=count
    )

  return jax.vmap(jax.grad(loss), (None, 0, 0, 0))(logits, token, row, mask)


def expected(name, end):
  """The mean over the student's responses, and the variance, summed."""
  p, ys = log_tables(STUDENT), responses(end)
  chances = np.array([chance(y, p) for y in ys])
  np.testing.assert_allclose(chances.sum(), 1, rtol=1e-12)
  # Past an end anything may stand, here the last token and the last table.
  # Filled up to the most responses, of no tokens, so that one program does.
  token = np.full((V**T, T), V - 1)
  row = np.full((V**T, T), len(PREFIXES) - 1)
  mask = np.zeros((V**T, T), bool)
  for i, y in enumerate(ys):
    for t in range(len(y)):
      token[i, t], row[i, t], mask[i, t] = y[t], place(y, t), True
  grads = every_gradient(name, jnp.asarray(STUDENT), token, row, mask)
  grads = np.asarray(grads, np.float64)[: len(ys)]
  mean = np.einsum('y,yiv->iv', chances, grads)
  return mean, np.einsum('y,yiv->', chances, (grads - mean) ** 2)


# By finite differences of the enumerated KL, not by the formula. Kills
# advantages that are summed in the other direction, not at all, or past the end
# of a response; a discount of the first token; a mean along the row.
@pytest.mark.parametrize('end', ENDS)
def test_all_advantages_to_come_descend_the_kl_of_the_sequence(end):
  exact = finite_differences(lambda x: sequence_kl(x, end), STUDENT)
  got, _ = expected('to come, 1', end)
  np.testing.assert_allclose(got, exact, atol=1e-5)
  # The formula at the top of this file is the same, so the tests below may
  # lean on it; and what the token level drops is not small.
  both = token_level(end) + coupling(end, 1.0)
  np.testing.assert_allclose(both, exact, atol=1e-8)
  assert np.abs(coupling(end, 1.0)).max() > 0.1 * np.abs(exact).max()


# Kills a discount that starts at gamma instead of 1, and an advantage of the
# token itself that is counted with later ones.
@pytest.mark.parametrize('end', ENDS)
@pytest.mark.parametrize('gamma', [0, 0.5])
def test_discounts_keep_their_share_of_the_coupling(gamma, end):
  got, _ = expected(f'to come, {gamma}', end)
  want = token_level(end) + coupling(end, gamma)
  np.testing.assert_allclose(got, want, atol=1e-5)


# On the student's own responses, all of these teach the same, each at its
# prefix; and that is not what the sequence's KL teaches. Kills a gradient that
# flows into the choice of prefixes, or that forgets how likely they are.
@pytest.mark.parametrize('end', ENDS)
def test_objectives_of_the_token_level_hold_the_prefixes_fixed(end):
  for name in ('reverse_kl', 'k2', 'own', 'centered'):
    got, _ = expected(name, end)
    np.testing.assert_allclose(got, token_level(end), atol=1e-5, err_msg=name)
  forward, _ = expected('forward_kl', end)
  want = token_level(end, oracles.grad_full_forward_kl)
  np.testing.assert_allclose(forward, want, atol=1e-5)


# A centered advantage has mean 0 at every prefix, whatever led there: the sum
# teaches the token level, whatever gamma, and is noisier. Kills an advantage
# that is centered on something other than its own prefix, and the belief that
# centering is free under a discount.
@pytest.mark.parametrize('end', ENDS)
def test_centering_later_advantages_takes_the_coupling_away(end):
  _, own = expected('centered', end)
  for gamma in (0.5, 1):
    got, variance = expected(f'centered to come, {gamma}', end)
    np.testing.assert_allclose(got, token_level(end), atol=1e-5)
    assert np.abs(got - token_level(end) - coupling(end, gamma)).max() > 0.05
    assert variance > own


# A baseline of the token's own prefix alone is free, also under a discount.
# Kills the inference that no baseline is.
@pytest.mark.parametrize('end', ENDS)
def test_centering_the_own_advantage_alone_keeps_the_coupling(end):
  got, _ = expected('to come above own mean', end)
  want = token_level(end) + coupling(end, 1.0)
  np.testing.assert_allclose(got, want, atol=1e-5)


# The price of the coupling. Kills a gamma that is ignored where means agree.
def test_advantages_to_come_are_noisier_than_a_tokens_own():
  variances = [expected(f'to come, {gamma}', None)[1] for gamma in (0, 0.5, 1)]
  assert 0 < variances[0] < variances[1] < variances[2]


# A bound on each is a bias at both levels; -0.5 binds at some places. Kills a
# bound on the sum instead.
def test_bounds_on_each_advantage_bias_the_sum():
  got, _ = expected('bounded to come', None)
  p, q = log_tables(STUDENT), log_tables(TEACHER)
  want = np.zeros(STUDENT.shape)
  for y in responses(None):
    for t in range(T):
      score = (np.arange(V) == y[t]) - np.exp(p[place(y, t)])
      advantage = sum(
        max((q - p)[place(y, u), y[u]], -0.5) for u in range(t, T)
      )
      want[place(y, t)] -= chance(y, p) * advantage * score
  np.testing.assert_allclose(got, want, atol=1e-5)
  exact = token_level(None) + coupling(None, 1.0)
  assert np.abs(got - exact).max() > 0.02
