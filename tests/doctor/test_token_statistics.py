"""Readings against plain NumPy in float64, and cases with a known value."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jopd import losses
from jopd.doctor import token_statistics
from jopd.run.loss import make_aggregation as make_reduction

VOCAB, PADDED, K = 7, 9, 3
SHAPE = (4, 5)
MASK = np.arange(5) < np.array([5, 2, 1, 4])[:, None]


def hidden_and_head(seed, width=6, rows=PADDED):
  rng = np.random.default_rng(seed)
  hidden = rng.normal(size=(*SHAPE, width)).astype(np.float32)
  return jnp.array(hidden), jnp.array(rng.normal(size=(rows, width)), 'f4')


def logp_of(hidden, head, vocab=VOCAB):
  logits = np.asarray(hidden, 'f8') @ np.asarray(head, 'f8').T
  logits = logits[..., :vocab]
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def of_logp(logp):
  """Hidden states and a head with these log-probs, [B, T, V]."""
  logp = jnp.maximum(jnp.asarray(logp, jnp.float32), -1e4)
  return logp, jnp.eye(logp.shape[-1])


@pytest.mark.parametrize('chunk_tokens', [8, 100])
def test_readings_are_what_loops_over_tokens_find(chunk_tokens):
  # Kills: sides exchanged, padding that has mass, a chunk out of its place.
  student, teacher = hidden_and_head(0), hidden_and_head(1, width=4)
  token = np.random.default_rng(2).integers(VOCAB, size=SHAPE)
  options = dict(vocab_size=VOCAB, k=K, chunk_tokens=chunk_tokens)
  read = jax.jit(partial(token_statistics.read, **options))
  found = read(student, teacher, jnp.array(token), jnp.array(MASK))
  p_all, q_all = logp_of(*student), logp_of(*teacher)
  raw = np.exp(logp_of(*student, vocab=PADDED))
  for place in np.argwhere(MASK):
    at = tuple(place)
    p, q = np.exp(p_all[at]), np.exp(q_all[at])
    p_top, q_top = ({*np.argsort(-x)[:K].tolist()} for x in (p, q))
    both = p_top & q_top
    want = token_statistics.Readings(
      student_logp=np.log(p[token[at]]),
      target_logp=np.log(q[token[at]]),
      student_entropy=-np.sum(p * np.log(p)),
      target_entropy=-np.sum(q * np.log(q)),
      reverse_kl=np.sum(p * np.log(p / q)),
      overlap=len(both) / K,
      agreement=float(np.argmax(p) == np.argmax(q)),
      overlap_mass=sum(p[v] for v in both),
      student_mass=sum(p[v] for v in p_top),
      target_mass=sum(q[v] for v in q_top),
      padding=raw[at][VOCAB:].sum(),
    )
    got = [float(x[at]) for x in found]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


class TestPrivilege:
  def information(self, qs, p):
    """Information and distance of teachers [J, V] and a student [V]."""
    mask = jnp.ones((1, 2), bool)
    wide = lambda logp: jnp.broadcast_to(logp, (1, 2, len(logp)))
    hidden = jnp.stack([of_logp(wide(q))[0] for q in qs])
    student = of_logp(wide(p))
    measure = jax.jit(
      partial(token_statistics.privilege, vocab_size=len(p), chunk_tokens=3)
    )
    found = measure(student, hidden, student[1], mask)
    assert all(np.ptp(x) == 0 for x in found)
    return tuple(float(x[0, 0]) for x in found)

  def test_a_privilege_that_names_the_token_is_log_j(self):
    # Each of 4 teachers is sure of another token; the student guesses evenly
    # among these, which is the best that it can do, so all of its loss is left.
    qs = np.log(np.eye(6)[:4] + 1e-30)
    p = np.log(np.array([1, 1, 1, 1, 0, 0]) / 4 + 1e-30)
    information, distance = self.information(qs, p)
    assert information == pytest.approx(np.log(4), rel=1e-6)
    assert distance == pytest.approx(np.log(4), rel=1e-6)

  def test_a_shared_privilege_is_nothing(self):
    # Kills: a statistic of the distance between teacher and student.
    q = np.log([0.7, 0.2, 0.1])
    information, distance = self.information([q] * 3, np.log([0.1, 0.1, 0.8]))
    assert information == pytest.approx(0, abs=1e-6)
    # 0.7 log 7 + 0.2 log 2 - 0.1 log 8
    assert distance == pytest.approx(1.2928, abs=1e-4)

  def test_by_hand(self):
    # q = (3/4, 1/4) and (1/4, 3/4), mixture (1/2, 1/2):
    # 3/4 log(3/2) + 1/4 log(1/2) = 0.1308 for either.
    qs = np.log([[0.75, 0.25], [0.25, 0.75]])
    information, distance = self.information(qs, np.log([0.9, 0.1]))
    assert information == pytest.approx(0.1308, abs=1e-4)
    # 3/4 log(.75/.9) + 1/4 log(.25/.1) = 0.0923 and
    # 1/4 log(.25/.9) + 3/4 log(.75/.1) = 1.1909; half their sum.
    assert distance == pytest.approx(0.6416, abs=1e-4)

  def test_no_student_without_the_privilege_does_better(self):
    # The claim of the docstring: the mixture is best, and leaves information.
    rng = np.random.default_rng(0)
    qs = np.log(rng.dirichlet(np.ones(5), size=3))
    mixture = np.log(np.exp(qs).mean(0))
    information, at_mixture = self.information(qs, mixture)
    assert at_mixture == pytest.approx(information, rel=1e-5)
    for p in np.log(rng.dirichlet(np.ones(5), size=5)):
      _, distance = self.information(qs, p)
      rest = np.sum(np.exp(mixture) * (mixture - p))
      assert distance == pytest.approx(information + rest, rel=1e-4)


@pytest.mark.parametrize('tail, rests', [('bucket', True), ('drop', False)])
def test_a_truncated_loss_moves_a_student_at_its_teacher(tail, rests):
  # Kills: a comparison with other hidden states or another head than its own.
  student, teacher = hidden_and_head(0), hidden_and_head(1)
  support = partial(losses.top_k, k=2, of='target', tail=tail)
  term = losses.Term(
    losses.divergence(losses.reverse_kl, support=support), coef=0
  )
  measure = jax.jit(
    partial(
      token_statistics.term_gradients,
      terms={'term': term},
      aggregation=make_reduction('token_mean'),
      vocab_size=VOCAB,
    )
  )
  token = jnp.zeros(SHAPE, jnp.int32)
  zeros = jnp.zeros(SHAPE)
  teachers = {'teacher': teacher}
  found = measure(student, teachers, token, zeros, jnp.array(MASK))['term']
  # Kills: a coefficient of 0, with which a schedule begins, that hides a term.
  assert found.norm > 0.1
  assert (found.norm_at_equality < 1e-5) == rests
  if rests:
    assert found.value_at_equality == pytest.approx(0, abs=1e-6)
