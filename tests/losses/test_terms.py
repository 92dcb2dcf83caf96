"""The sum of terms: masks, denominators, weights, coefficients, splitting."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from jopd import losses

B, T, V = 4, 5, 7
RNG = np.random.default_rng(0)
STUDENT, TARGET, OTHER = RNG.normal(size=(3, B, T, V))
TOKEN = RNG.integers(V, size=(B, T))
LENGTHS = np.array([5, 1, 0, 3])  # full, one token, empty, middling
MASK = jnp.asarray(np.arange(T)[None, :] < LENGTHS[:, None])
COUNT = int(LENGTHS.sum())

OPD = {'opd': losses.Term(losses.divergence(losses.reverse_kl))}

REDUCTIONS = {
  'token': losses.token_mean,
  'sequence': losses.sequence_mean,
  'fixed': functools.partial(losses.fixed_length, length=8),
}
every_reduction = pytest.mark.parametrize(
  'reduce', REDUCTIONS.values(), ids=REDUCTIONS
)


def batch_of(student=STUDENT, rows=slice(None)):
  return losses.TokenBatch(
    student_logp=losses.log_probs(jnp.asarray(student)[rows]),
    logps={
      'teacher': losses.log_probs(jnp.asarray(TARGET)[rows]),
      'other': losses.log_probs(jnp.asarray(OTHER)[rows]),
    },
    token=(token := jnp.asarray(TOKEN)[rows]),
    sampler_logp=jnp.full(token.shape, -1.5),
  )


def kl(b, t, target=TARGET):
  return oracles.reverse_kl(
    oracles.softmax(STUDENT[b, t]), oracles.softmax(target[b, t])
  )


def live():
  return [(b, t) for b in range(B) for t in range(LENGTHS[b])]


# Kills a mean over B * T, and one over rows where tokens are meant.
def test_the_loss_is_the_mean_over_live_tokens():
  got = losses.distill_loss(batch_of(), OPD, mask=MASK, count=COUNT)
  expected = sum(kl(b, t) for b, t in live()) / 9
  np.testing.assert_allclose(got, expected, rtol=1e-5)


# Rows of 5, 1, 0 and 3 tokens; the empty one adds 0 / 0 = 0. Kills a row's mean
# over T, and an empty row that is NaN.
def test_the_sequence_mean_weighs_rows_alike():
  got = losses.distill_loss(
    batch_of(), OPD, mask=MASK, reduce=losses.sequence_mean, count=4
  )
  expected = (
    sum(np.mean([kl(b, t) for t in range(LENGTHS[b])]) for b in (0, 1, 3)) / 4
  )
  np.testing.assert_allclose(got, expected, rtol=1e-5)


# Rows of 5, 1, 0 and 3 tokens over a length of 8, 4 rows. Kills a row's own
# length, and a mean over tokens: the row of 5 weighs five times that of 1.
def test_the_fixed_length_weighs_tokens_alike_in_every_batch():
  reduce = functools.partial(losses.fixed_length, length=8)
  got = losses.distill_loss(batch_of(), OPD, mask=MASK, reduce=reduce, count=4)
  expected = sum(kl(b, t) for b, t in live()) / 8 / 4
  np.testing.assert_allclose(got, expected, rtol=1e-5)


# (1 + 2) / 4 and 6 / 4, over 2 rows; the gradient is 1 / 8 where it counts.
# Kills 0 * NaN at masked places, in value and gradient.
def test_the_fixed_length_by_hand():
  loss = jnp.array([[1.0, 2.0, jnp.nan], [6.0, jnp.nan, jnp.inf]])
  mask = jnp.array([[True, True, False], [True, False, False]])
  value, grad = jax.value_and_grad(losses.fixed_length)(loss, mask, 2, length=4)
  assert value == 1.125
  np.testing.assert_array_equal(grad, mask / 8)


@pytest.mark.parametrize('length', [0, -3])
def test_no_length_is_refused(length):
  with pytest.raises(ValueError, match=f'above 0, got {length}'):
    losses.fixed_length(jnp.ones((1, 1)), MASK[:1, :1], 1, length=length)


# Two terms with coefficients, weights and targets of their own:
# 2 * mean(H(p) * KL(p || teacher)) + 0.5 * mean(KL(p || other)).
# Kills a coefficient that multiplies the wrong term, a lost weight or target.
def test_terms_add_up():
  other = functools.partial(losses.teacher, role='other')
  terms = {
    'a': losses.Term(
      losses.divergence(losses.reverse_kl), lambda s: s.student_entropy, 2.0
    ),
    'b': losses.Term(
      losses.divergence(losses.reverse_kl, target=other), coef=jnp.array(0.5)
    ),
  }
  got = losses.distill_loss(batch_of(), terms, mask=MASK, count=COUNT)
  expected = 0
  for b, t in live():
    p = oracles.softmax(STUDENT[b, t])
    entropy = -sum(x * np.log(x) for x in p)
    expected += 2 * entropy * kl(b, t) + 0.5 * kl(b, t, OTHER)
  np.testing.assert_allclose(got, expected / COUNT, rtol=1e-5)


# Kills a gradient through the weight: the entropy has one, its use has none.
def test_the_weight_is_a_constant():
  def grad(weight):
    terms = {'a': losses.Term(losses.divergence(losses.reverse_kl), weight)}
    return jax.grad(
      lambda z: losses.distill_loss(batch_of(z), terms, mask=MASK, count=COUNT)
    )(jnp.asarray(STUDENT))

  weighted = grad(lambda stats: stats.student_entropy)
  plain = grad(losses.uniform)
  for b, t in live():
    p = oracles.softmax(STUDENT[b, t])
    entropy = -sum(x * np.log(x) for x in p)
    np.testing.assert_allclose(weighted[b, t], entropy * plain[b, t], atol=1e-6)


# Trap 7. Kills masks applied after arithmetic: 0 * NaN is NaN, and so is its
# gradient.
@pytest.mark.parametrize('poison', [np.nan, np.inf, -np.inf])
def test_nothing_at_masked_places_matters(poison):
  dead = ~MASK

  def loss(student_logp, poison):
    batch = batch_of()
    batch = batch._replace(
      student_logp=jnp.where(dead[..., None], poison, student_logp),
      logps={
        name: jnp.where(dead[..., None], poison, x)
        for name, x in batch.logps.items()
      },
      token=jnp.where(dead, 10**6, batch.token),
      sampler_logp=jnp.where(dead, poison, batch.sampler_logp),
    )
    terms = OPD | {
      'pg': losses.Term(
        losses.policy_gradient(
          losses.reinforce, old_policy=losses.old_policies.sampler
        )
      )
    }
    return losses.distill_loss(batch, terms, mask=MASK, count=COUNT)

  both = jax.jit(jax.value_and_grad(loss))
  student_logp = batch_of().student_logp
  value, grad = both(student_logp, poison)
  clean_value, clean_grad = both(student_logp, -1.0)
  assert np.isfinite(value) and value == clean_value
  np.testing.assert_array_equal(grad, clean_grad)
  assert (np.asarray(grad)[np.asarray(dead)] == 0).all()
  assert (np.asarray(grad)[np.asarray(MASK)] != 0).any()


# Traps 6, 26. Kills a local denominator: rows in any order, in halves, or in
# ragged parts share one count and add up.
@every_reduction
def test_microbatches_add_up(reduce):
  count = COUNT if reduce is losses.token_mean else B

  @jax.jit
  def part(rows):
    return losses.distill_loss(
      batch_of(rows=rows), OPD, mask=MASK[rows], reduce=reduce, count=count
    )

  whole = part(np.arange(B))
  np.testing.assert_allclose(part(np.array([3, 1, 0, 2])), whole, rtol=1e-5)
  halves = part(np.array([0, 1])) + part(np.array([2, 3]))
  np.testing.assert_allclose(halves, whole, rtol=1e-5)
  ragged = part(np.array([2])) + part(np.array([0, 1, 3]))
  np.testing.assert_allclose(ragged, whole, rtol=1e-5)


# Trap 29. Kills 0 / 0 of a batch in which nothing is live.
@every_reduction
def test_an_empty_batch_is_zero_with_zero_gradients(reduce):
  def loss(student):
    return losses.distill_loss(
      batch_of(student),
      OPD,
      mask=jnp.zeros([B, T], bool),
      reduce=reduce,
      count=0,
    )

  value, grad = jax.value_and_grad(loss)(jnp.asarray(STUDENT))
  assert value == 0
  np.testing.assert_array_equal(grad, np.zeros([B, T, V]))


# The chunked kernel reads a reduction's token weights off its gradient. Kills
# one that is not linear: reduce(x + 2 y) = reduce(x) + 2 reduce(y).
@every_reduction
def test_reductions_are_linear(reduce):
  x, y = jnp.asarray(RNG.normal(size=(2, B, T)), jnp.float32)
  r = functools.partial(reduce, mask=MASK, count=jnp.array(3.0))
  np.testing.assert_allclose(r(x + 2 * y), r(x) + 2 * r(y), rtol=1e-5)
  weights = jax.grad(r)(jnp.zeros([B, T]))
  np.testing.assert_allclose(r(x), jnp.sum(weights * x), rtol=1e-5)


# Kills a coefficient baked into the program: a schedule compiles once.
def test_a_scheduled_coefficient_does_not_retrace():
  traces = []

  @jax.jit
  def loss(coef):
    traces.append(1)
    terms = {'opd': OPD['opd']._replace(coef=coef)}
    return losses.distill_loss(batch_of(), terms, mask=MASK, count=COUNT)

  one, three = loss(jnp.float32(1.0)), loss(jnp.float32(3.0))
  assert len(traces) == 1
  np.testing.assert_allclose(three, 3 * one, rtol=1e-6)


# Kills a lookup that falls back on some other teacher.
def test_a_missing_teacher_is_named():
  terms = {
    'opd': losses.Term(
      losses.divergence(
        losses.reverse_kl,
        target=functools.partial(losses.teacher, role='math'),
      )
    )
  }
  with pytest.raises(
    ValueError, match=r"named 'math', got \['other', 'student'"
  ):
    losses.distill_loss(batch_of(), terms, mask=MASK, count=COUNT)


def test_no_terms_are_refused():
  with pytest.raises(ValueError, match='at least one term'):
    losses.distill_loss(batch_of(), {}, mask=MASK, count=COUNT)
