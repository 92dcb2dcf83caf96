"""Terms over the responses to a prompt: pairs of them, and rows of some."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jopd import losses
from jopd.losses.token_stats import reads_of

T, V = 4, 5
SUM = functools.partial(losses.fixed_length, length=1)
# Two prompts, rows of a group apart from one another; the last group has two
# better ones. Rows of 4, 1, 3, 2, 4 tokens.
GROUP = np.array([7, 3, 7, 3, 3])
SOURCE = np.array([0, 1, 2, 0, 1])
LENGTHS = np.array([4, 1, 3, 2, 4])
MASK = np.arange(T)[None, :] < LENGTHS[:, None]
RNG = np.random.default_rng(0)
STUDENT, TARGET = RNG.normal(size=(2, 5, T, V))
TOKEN = RNG.integers(V, size=(5, T))


def row_of(**known):
  known = dict(group=GROUP, source=SOURCE) | known
  return losses.Row(**{n: jnp.asarray(x) for n, x in known.items()})


def batch_of(student=STUDENT, target=TARGET, row=None):
  each = lambda x: jnp.broadcast_to(x[:, None], (5, T))
  return losses.TokenBatch(
    student_logp=losses.log_probs(jnp.asarray(student)),
    logps={'teacher': losses.log_probs(jnp.asarray(target))},
    token=jnp.asarray(TOKEN),
    sampler_logp=jnp.zeros((5, T)),
    row=jax.tree.map(each, row_of() if row is None else row),
  )


def dpo(student, beta):
  """The mean over rows of their group's loss, in float64, pair by pair."""
  logp = lambda z: z - np.log(np.sum(np.exp(z), axis=-1, keepdims=True))
  p, q = logp(np.float64(student)), logp(TARGET)
  ratio = [
    sum(p[i, t, TOKEN[i, t]] - q[i, t, TOKEN[i, t]] for t in range(LENGTHS[i]))
    for i in range(5)
  ]
  total = 0.0
  for pairs, rows in (([(2, 0)], 2), ([(1, 3), (4, 3)], 3)):
    each = [np.log1p(np.exp(-beta * (ratio[i] - ratio[j]))) for i, j in pairs]
    total += rows * np.mean(each)
  return total / 5


# Kills a sign, a beta, a pair across prompts, sums that are means, and a value
# that is not the loss.
def test_preference_is_dpo_and_so_is_its_gradient():
  terms = {'dpo': losses.Term(losses.preference(beta=0.3))}

  def loss(student):
    return losses.distill_loss(
      batch_of(student), terms, mask=jnp.asarray(MASK), reduce=SUM, count=5
    )

  value, grad = jax.value_and_grad(loss)(jnp.asarray(STUDENT, jnp.float32))
  np.testing.assert_allclose(value, dpo(STUDENT, 0.3), rtol=1e-5)
  for place in np.ndindex(5, T, V):
    step = np.zeros_like(STUDENT)
    step[place] = 1e-5
    slope = (dpo(STUDENT + step, 0.3) - dpo(STUDENT - step, 0.3)) / 2e-5
    np.testing.assert_allclose(grad[place], slope, atol=2e-6)


# Kills a margin that is not 0 where the student is its target, a loss that then
# is not log 2, rows without a partner that add something.
def test_preference_at_rest_is_log_two():
  terms = {'dpo': losses.Term(losses.preference(beta=0.3))}
  loss = functools.partial(
    losses.distill_loss, terms=terms, reduce=SUM, mask=jnp.asarray(MASK)
  )
  same = loss(batch_of(target=STUDENT), count=5)
  np.testing.assert_allclose(same, np.log(2), rtol=1e-6)
  alone = batch_of(row=row_of(group=np.arange(5)))
  assert loss(alone, count=5) == 0


# Rewards 1, 1 | 0, 2, 1: no pair in the first group, three in the second.
def test_rewards_can_say_which_is_better():
  terms = {'dpo': losses.Term(losses.preference(beta=0.3, by='reward'))}
  reward = np.array([1.0, 0.0, 1.0, 2.0, 1.0])
  slopes = jax.grad(
    lambda z: losses.distill_loss(
      batch_of(z, row=row_of(reward=reward)),
      terms,
      mask=jnp.asarray(MASK),
      reduce=SUM,
      count=5,
    )
  )(jnp.asarray(STUDENT, jnp.float32))
  own = np.take_along_axis(np.asarray(slopes), TOKEN[..., None], axis=-1)[:, 0]
  # Descent raises what is better, lowers what is worse.
  assert np.sign(own[:, 0]).tolist() == [0, 1, 0, -1, np.sign(own[4, 0])]


# L = L_own + 0.1 L_other, each over its own tokens. Kills one denominator for
# both, a NaN of rows that a term does not read, and metrics of other rows.
def test_each_term_is_the_mean_over_its_own_rows():
  own = functools.partial(losses.rows_where, sources=(0,))
  other = functools.partial(losses.rows_where, sources=(1, 2))
  advantage = lambda stats: stats.reward
  advantage = losses.reads('token')(advantage)
  terms = {
    'match': losses.Term(losses.divergence(losses.reverse_kl), rows=own),
    'reward': losses.Term(
      losses.policy_gradient(losses.reinforce, advantage=advantage), rows=own
    ),
    'copy': losses.Term(losses.negative_log_likelihood(), coef=0.1, rows=other),
  }
  # Nobody graded what others wrote.
  reward = np.where(SOURCE == 0, 2.0, np.nan)
  row = row_of(reward=reward)
  mask = jnp.asarray(MASK)
  count = {
    name: jnp.sum(x) for name, x in losses.term_masks(terms, row, mask).items()
  }
  assert {n: int(x) for n, x in count.items()} == dict(
    match=6, reward=6, copy=8
  )
  kls = np.asarray(
    losses.reverse_kl(
      *(losses.log_probs(jnp.asarray(x)) for x in (STUDENT, TARGET))
    )
  )
  nll = -np.asarray(
    losses.token_logp(
      losses.log_probs(jnp.asarray(STUDENT)), jnp.asarray(TOKEN)
    )
  )
  mean = lambda x, rows: np.sum((x * MASK)[rows]) / LENGTHS[rows].sum()
  expected = mean(kls, [0, 3]) - 2 + 0.1 * mean(nll, [1, 2, 4])
  dense = lambda z: losses.distill_loss(
    batch_of(z, row=row), terms, mask=mask, count=count
  )
  value, grad = jax.value_and_grad(dense)(jnp.asarray(STUDENT, jnp.float32))
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  assert jnp.all(jnp.isfinite(grad))
  # The same from hidden states: logits times a head that is one.
  chunked = lambda hidden: losses.distill_loss_chunked(
    hidden,
    jnp.eye(V),
    {'teacher': (jnp.asarray(TARGET, jnp.float32), jnp.eye(V))},
    jnp.asarray(TOKEN),
    jnp.zeros((5, T)),
    terms,
    mask=mask,
    count=count,
    row=row,
    chunk_tokens=10,
    stats_rows=own,
  )
  (loss, metrics), slopes = jax.value_and_grad(chunked, has_aux=True)(
    jnp.asarray(STUDENT, jnp.float32)
  )
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  np.testing.assert_allclose(slopes, grad, atol=1e-6)
  for name, rows in (('reverse_kl', [0, 3]), ('loss/match', [0, 3])):
    total, tokens = metrics[name]
    np.testing.assert_allclose(total / tokens, mean(kls, rows), rtol=1e-5)
  assert metrics['loss/copy'][1] == 8


# With the other terms at 0 the student's rows are distilled as if they were
# alone (StableOPD and BRTS at coefficient 0). Kills a denominator of all rows.
def test_a_term_of_the_student_is_plain_distillation():
  own, others = ((0,), (1, 2))
  on = lambda sources: functools.partial(losses.rows_where, sources=sources)
  match = losses.divergence(losses.reverse_kl)
  nll = losses.negative_log_likelihood()
  terms = {
    'match': losses.Term(match, rows=on(own)),
    'gold': losses.Term(nll, coef=0.0, rows=on(others)),
  }
  mask = jnp.asarray(MASK)
  mixed = lambda z: losses.distill_loss(
    batch_of(z), terms, mask=mask, count=dict(match=6, gold=8)
  )
  alone = lambda z: losses.distill_loss(
    batch_of(z),
    {'opd': losses.Term(match)},
    mask=mask & jnp.asarray(SOURCE == 0)[:, None],
    count=6,
  )
  student = jnp.asarray(STUDENT, jnp.float32)
  for one, other in zip(
    *(jax.value_and_grad(f)(student) for f in (mixed, alone)), strict=True
  ):
    np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-8)


# MOPD: each row is pulled by its domain's teacher, each domain weighs alike.
# Kills a teacher that pulls elsewhere, and a mean over all tokens.
def test_each_domain_has_its_own_teacher():
  domain = np.array([0, 1, 1, 0, -1])
  other = RNG.normal(size=TARGET.shape)
  batch = batch_of(row=row_of(domain=domain))
  batch.logps['other'] = losses.log_probs(jnp.asarray(other))
  term = lambda role, place: losses.Term(
    losses.divergence(
      losses.reverse_kl, target=functools.partial(losses.teacher, role=role)
    ),
    rows=functools.partial(losses.rows_where, domains=(place,)),
  )
  terms = {'sums': term('teacher', 0), 'rules': term('other', 1)}
  loss = losses.distill_loss(
    batch, terms, mask=jnp.asarray(MASK), count=dict(sums=6, rules=4)
  )
  kl = lambda target: np.asarray(
    losses.reverse_kl(
      losses.log_probs(jnp.asarray(STUDENT)),
      losses.log_probs(jnp.asarray(target)),
    )
  )
  of = lambda target, rows: np.sum((kl(target) * MASK)[rows])
  expected = of(TARGET, [0, 3]) / 6 + of(other, [1, 2]) / 4
  np.testing.assert_allclose(loss, expected, rtol=1e-5)


# The chunked path hands an advantage over that is a pair of arrays.
def test_preference_in_chunks_is_the_dense_one():
  terms = {'dpo': losses.Term(losses.preference(beta=0.3))}
  mask, row = jnp.asarray(MASK), row_of()
  student = jnp.asarray(STUDENT, jnp.float32)
  dense = jax.value_and_grad(
    lambda z: losses.distill_loss(
      batch_of(z), terms, mask=mask, reduce=SUM, count=5
    )
  )
  chunked = jax.value_and_grad(
    lambda hidden: losses.distill_loss_chunked(
      hidden,
      jnp.eye(V),
      {'teacher': (jnp.asarray(TARGET, jnp.float32), jnp.eye(V))},
      jnp.asarray(TOKEN),
      jnp.zeros((5, T)),
      terms,
      mask=mask,
      reduce=SUM,
      count=5,
      row=row,
      chunk_tokens=10,
    )[0]
  )
  for one, other in zip(dense(student), chunked(student), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_what_is_missing_is_refused():
  assert reads_of(losses.preference(beta=1.0).advantage).scope == 'group'
  with pytest.raises(ValueError, match='beta must be above 0'):
    losses.preference(beta=0.0)
  with pytest.raises(ValueError, match="by must be 'source' or 'reward'"):
    losses.preference(beta=1.0, by='length')
  own = losses.Term(losses.negative_log_likelihood(), rows=losses.rows_where)
  with pytest.raises(ValueError, match='no row metadata'):
    losses.term_masks({'a': own}, None, jnp.asarray(MASK))


# Kills a check that looks at names, or at groups of one alone.
@pytest.mark.parametrize(
  'sources, rows, fine',
  [
    ([[0, 1]], None, True),
    ([[0], [0, 1]], None, True),
    ([[0, 0]], None, False),
    ([[0]], None, False),
    ([[0, 1, 2]], (1, 2), False),
  ],
)
def test_groups_without_pairs_are_refused(sources, rows, fine):
  where = rows and functools.partial(losses.rows_where, sources=rows)
  term = losses.Term(losses.preference(beta=0.1), rows=where)
  if fine:
    losses.check_groups(term, sources)
    return
  with pytest.raises(ValueError, match='there are none to compare'):
    losses.check_groups(term, sources)
