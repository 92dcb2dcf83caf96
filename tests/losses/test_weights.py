"""Weights: against loops and sorts, by hand, and in expectation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from jopd import losses
from jopd.losses.token_stats import reads_of

V = 12
RNG = np.random.default_rng(0)
STUDENT, TARGET, SAMPLER = RNG.normal(size=(3, V)) * 1.5
P, Q, MU = (oracles.softmax(x) for x in (STUDENT, TARGET, SAMPLER))
REVERSE = oracles.grad_full_reverse_kl(P, Q)
FORWARD = oracles.grad_full_forward_kl(P, Q)


def stats_with(**fields):
  """Stats of which only the given ones are known."""
  return losses.TokenStats(
    **{name: jnp.asarray(x) for name, x in fields.items()}
  )


def expected_gradient(objective, weight, reduce_by):
  """Sum over v of chance_v * the gradient of weight * objective at token v.

  The tokens are those of MU, one to a row, whatever they are weighted by.
  """

  def loss(logits):
    rows = lambda x: jnp.broadcast_to(losses.log_probs(x), (V, 1, V))
    batch = losses.TokenBatch(
      student_logp=rows(logits),
      logps={'teacher': rows(jnp.asarray(TARGET))},
      token=jnp.arange(V)[:, None],
      sampler_logp=losses.log_probs(jnp.asarray(SAMPLER))[:, None],
    )
    return losses.distill_loss(
      batch,
      {'a': losses.Term(objective, weight=weight)},
      mask=jnp.ones((V, 1), bool),
      reduce=lambda x, mask, count: jnp.sum(reduce_by[:, None] * x),
      count=1,
    )

  return np.asarray(jax.jit(jax.grad(loss))(jnp.asarray(STUDENT)), np.float64)


# Values 1, 2, 3 with bounds 1 and 2. Kills an exclusive bound, bounds that are
# exchanged, and a bound that is there when none was asked for.
def test_the_bounds_of_a_gate_are_inclusive():
  stats = stats_with(target_entropy=[1.0, 2.0, 3.0])
  gate = functools.partial(losses.gate, stats, of='target_entropy')
  for bounds, expected in [
    ({'low': 1.0, 'high': 2.0}, [1, 1, 0]),
    ({'low': 2.0}, [0, 1, 1]),
    ({'high': 1.0}, [1, 0, 0]),
    ({'low': 2.0, 'high': 2.0}, [0, 1, 0]),
    ({}, [1, 1, 1]),
  ]:
    weight = gate(**bounds)
    np.testing.assert_array_equal(weight, expected)
    assert weight.dtype == jnp.float32


# Each stat by its own name. Kills a gate that reads one and the same.
def test_a_gate_reads_the_stat_it_names():
  names = [x for x in losses.TokenStats._fields if x != 'mask']
  for name in names:
    low = {key: [0.0] for key in names}
    stats = stats_with(mask=[True], **low | {name: [1.0]})
    for other in names:
      weight = losses.gate(stats, of=other, low=0.5)
      np.testing.assert_array_equal(weight, [float(other == name)])


# Kills an AttributeError, a comparison with None, and the mask, or a method of
# the tuple, as a stat; the error lists what is there.
@pytest.mark.parametrize('of', ['entropy', 'reverse_kl', 'mask', 'count'])
@pytest.mark.parametrize(
  'weight',
  [losses.gate, functools.partial(losses.top_fraction, fraction=0.5)],
)
def test_an_unknown_stat_is_refused(weight, of):
  stats = stats_with(
    student_logp=[0.0], student_entropy=[1.0], mask=[True]
  )  # as without a teacher
  message = rf"one of \['student_logp', .*\]; got '{of}'"
  with pytest.raises(ValueError, match=message):
    weight(stats, of=of)


def top_fraction(value, mask, fraction):
  """By a sort of those that count: the share's last, and all not below it."""
  live = sorted((x for x, m in zip(value, mask, strict=True) if m))[::-1]
  if not live:
    return np.zeros(len(value))
  threshold = live[max(round(fraction * len(live)), 1) - 1]
  return np.array(
    [float(m and x >= threshold) for x, m in zip(value, mask, strict=True)]
  )


# Kills the smallest for the largest, a share of all places instead of those
# that count, a masked place that is chosen or sets the threshold, ties of which
# only some count, and a share that is truncated (0.29 * 100 is 28.99...).
@pytest.mark.parametrize('ties', [False, True])
@pytest.mark.parametrize('live', [1.0, 0.6, 0.0])
def test_the_top_fraction_equals_a_sort(live, ties):
  rng = np.random.default_rng(1)
  value = rng.normal(size=100)
  value = np.round(value) if ties else value
  mask = rng.random(100) < live
  stats = stats_with(
    reverse_kl=np.float32(np.where(mask, value, 9.0)).reshape(4, 25),
    mask=mask.reshape(4, 25),
  )
  run = jax.jit(
    lambda f: losses.top_fraction(stats, of='reverse_kl', fraction=f)
  )
  for fraction in (0.001, 0.1, 0.29, 0.5, 0.92, 1.0):
    expected = top_fraction(np.float32(value), mask, fraction)
    got = np.asarray(run(fraction)).ravel()
    np.testing.assert_array_equal(got, expected, err_msg=str(fraction))
    if not ties and fraction > 0.01:
      assert got.sum() == round(fraction * mask.sum())
  np.testing.assert_array_equal(got, mask)  # a fraction of 1 keeps all


# Kills a fraction that is static, or read at trace time.
def test_a_scheduled_fraction_does_not_retrace():
  traces = []
  stats = stats_with(
    student_entropy=jnp.arange(8.0).reshape(2, 4), mask=jnp.ones((2, 4), bool)
  )

  @jax.jit
  def run(fraction):
    traces.append(1)
    weight = losses.top_fraction(stats, of='student_entropy', fraction=fraction)
    return jnp.sum(weight)

  assert [run(jnp.float32(x)) for x in (0.25, 0.5, 1.0)] == [2, 4, 8]
  assert len(traces) == 1


# p / mu = 1/4, 1/2, 2 and 8. Kills mu / p, a low that drops the ratio that
# equals it, a low that clips, and a high that drops.
def test_truncated_importance_by_hand():
  stats = stats_with(
    student_logp=jnp.log(jnp.array([0.125, 0.25, 0.5, 0.8])),
    sampler_logp=jnp.log(jnp.array([0.5, 0.5, 0.25, 0.1])),
  )
  weight = losses.importance(stats)
  np.testing.assert_allclose(weight, [0.25, 0.5, 2, 2], rtol=1e-6)
  weight = losses.importance(stats, low=0.5, high=4.0)
  np.testing.assert_allclose(weight, [0, 0.5, 2, 4], rtol=1e-6)
  weight = losses.importance(stats, high=jnp.inf)
  np.testing.assert_allclose(weight, [0.25, 0.5, 2, 8], rtol=1e-6)


# Tokens of MU, each at its weight, teach what the student's own would: k2 the
# reverse KL, k3 the forward one, a policy gradient the reverse. A divergence
# teaches the same from any tokens, and still does: the mean weight is 1. Kills
# mu / p, a weight that the gradient sees, and one of another prefix's token.
@pytest.mark.parametrize(
  'objective, expected',
  [
    (losses.kl_estimate(losses.k2), REVERSE),
    (losses.kl_estimate(losses.k3), FORWARD),
    (losses.policy_gradient(losses.reinforce), REVERSE),
    (losses.divergence(losses.reverse_kl), REVERSE),
  ],
)
def test_importance_makes_the_samplers_tokens_the_students(objective, expected):
  whole = functools.partial(losses.importance, high=jnp.inf)
  got = expected_gradient(objective, whole, MU)
  np.testing.assert_allclose(got, expected, atol=1e-5)


# What the truncation costs, and what no weight at all costs. Kills bounds that
# do not bind.
def test_truncated_importance_is_biased():
  k2 = losses.kl_estimate(losses.k2)
  for weight in (
    losses.uniform,
    functools.partial(losses.importance, high=1.0),
    functools.partial(losses.importance, low=0.5, high=jnp.inf),
  ):
    got = expected_gradient(k2, weight, MU)
    assert np.abs(got - REVERSE).max() > 0.03, weight


# The gradient is the weight times that of the objective alone: of the forward
# KL, (p - q) * w. Kills a weight that the student can lower.
@pytest.mark.parametrize(
  'weight',
  [
    losses.uniform,
    losses.importance,
    functools.partial(losses.gate, of='student_logp', low=-2.0),
    functools.partial(losses.top_fraction, of='student_logp', fraction=0.5),
    lambda stats: stats.student_entropy * jnp.exp(stats.student_logp),
  ],
)
def test_a_weight_is_a_constant(weight):
  values = weight(
    losses.token_stats(
      jnp.broadcast_to(losses.log_probs(jnp.asarray(STUDENT)), (V, 1, V)),
      None,
      jnp.arange(V)[:, None],
      losses.log_probs(jnp.asarray(SAMPLER))[:, None],
    )
  )
  total = P @ np.asarray(values, np.float64)[:, 0]
  got = expected_gradient(losses.divergence(losses.forward_kl), weight, P)
  np.testing.assert_allclose(got, total * FORWARD, atol=1e-6)


# A weight or an advantage that depends on another trained value. Kills a
# gradient through the product, which the stop of the stats would hide above.
@pytest.mark.parametrize('how', ['weight', 'advantage'])
def test_what_a_weight_or_advantage_closes_over_learns_nothing(how):
  def total(scale):
    scaled = lambda stats: scale * stats.student_entropy
    if how == 'weight':
      term = losses.Term(losses.divergence(losses.reverse_kl), weight=scaled)
    else:
      objective = losses.policy_gradient(losses.reinforce, advantage=scaled)
      term = losses.Term(objective)
    logp = losses.log_probs(jnp.asarray([[STUDENT, TARGET]]))
    batch = losses.TokenBatch(
      logp, {'teacher': logp[:, ::-1]}, jnp.array([[1, 2]]), jnp.zeros((1, 2))
    )
    mask = jnp.array([[True, True]])
    return losses.distill_loss(batch, {'a': term}, mask=mask, count=2)

  value, grad = jax.value_and_grad(total)(2.0)
  assert abs(value) > 0.1
  assert grad == 0


# Kills a mark that is lost by a partial, and a quantile over a chunk.
def test_what_each_weight_reads():
  partial = functools.partial
  for weight, reads in [
    (losses.uniform, 'token'),
    (partial(losses.gate, of='overlap', low=0.5), 'token'),
    (partial(partial(losses.importance, low=0.1), high=4.0), 'token'),
    (partial(losses.top_fraction, of='overlap', fraction=0.5), 'batch'),
    (partial(losses.normalized, weight=losses.uniform), 'batch'),
    (lambda stats: stats.overlap, 'batch'),
  ]:
    assert reads_of(weight).scope == reads, weight


# Kills a mean over masked tokens, and 0 / 0 where no weight is left.
def test_a_normalized_weight_has_mean_1_over_the_tokens_that_count():
  ratio = np.array([[1.0, -1.0, 2.0], [0.5, -3.0, 4.0]])
  mask = np.array([[True, True, False], [True, True, True]])
  stats = stats_with(student_logp=0 * ratio, target_logp=ratio, mask=mask)
  weight = functools.partial(losses.gate, of='log_ratio', low=0.0)
  got = np.asarray(losses.normalized(stats, weight=weight))[mask]
  np.testing.assert_allclose(got, (ratio[mask] > 0) / 0.6, rtol=1e-6)
  empty = functools.partial(losses.gate, of='log_ratio', low=99.0)
  assert not np.any(losses.normalized(stats, weight=empty))


def test_a_fraction_out_of_range_is_refused():
  stats = stats_with(reverse_kl=np.ones(2), mask=np.ones(2, bool))
  for fraction in (0.0, -0.5, 1.5):
    with pytest.raises(ValueError, match=r'fraction must be in \(0, 1\], got'):
      losses.top_fraction(stats, of='reverse_kl', fraction=fraction)
