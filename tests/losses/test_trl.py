"""Against TRL: the same arrays to both sides, the same values and gradients.

What TRL's trainers minimise, at the version pinned in pyproject.toml: the
chunked loss of its DistillationTrainer, GKD's divergence, and SDFT's losses on
the whole vocabulary, on the student's top k and on the sampled token.
"""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jopd import losses

B, T, V = 3, 5, 20
BETAS = (0.0, 0.3, 1.0)
RNG = np.random.default_rng(0)


def normal(*shape, scale=1.0):
  return RNG.normal(size=shape, scale=scale).astype(np.float32)


HIDDEN, HEAD = normal(B, T, 6), normal(V, 6)
TEACHER = normal(B, T, 4), normal(V, 4)  # of another width
LOGITS, TEACHER_LOGITS = normal(2, B, T, V, scale=2.0)
TOKEN = RNG.integers(V, size=(B, T))
WEIGHT = normal(B, T)
MASKS = {
  name: np.array(rows, bool)
  for name, rows in {
    'all': [[1] * 5] * 3,
    'some': [[1, 1, 1, 0, 0], [0] * 5, [1, 0, 1, 1, 1]],  # an empty row, a hole
    'none': [[0] * 5] * 3,
  }.items()
}
JSD = {b: functools.partial(losses.generalized_jsd, beta=b) for b in BETAS}

masks = pytest.mark.parametrize('mask', MASKS.values(), ids=MASKS)
betas = pytest.mark.parametrize('beta', BETAS)
temperatures = pytest.mark.parametrize('temperature', [1.0, 0.6, 2.5])


@pytest.fixture(scope='module')
def trl():
  """TRL's functions by name; skipped where TRL or torch is absent."""
  pytest.importorskip('torch', reason='TRL runs on torch')
  pytest.importorskip('trl', reason='only an oracle')
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # that trl.experimental is experimental
    from trl.experimental.gkd.gkd_trainer import GKDTrainer
    from trl.experimental.sdft import loss_utils
    from trl.trainer import distillation_trainer
  return {
    'chunked': distillation_trainer._chunked_divergence_loss,
    'gkd': GKDTrainer.generalized_jsd_loss,
    'full': loss_utils.compute_full_logit_self_distillation_loss,
    'top_k': loss_utils.compute_topk_self_distillation_loss,
    'kl_estimate': loss_utils.compute_sampled_token_self_distillation_loss,
  }


def tensor(array, dtype='float64', **kwargs):
  import torch

  return torch.tensor(array, dtype=getattr(torch, dtype), **kwargs)


def value_and_gradients(loss, *arrays, dtype='float64'):
  """Of a scalar torch loss, as numbers and NumPy arrays."""
  tensors = [tensor(x, dtype, requires_grad=True) for x in arrays]
  value = loss(*tensors)
  value.backward()
  return value.item(), tuple(x.grad.numpy() for x in tensors)


def assert_equal(got, expected, atol=2e-6):
  """Up to float32."""
  assert jax.tree.structure(got) == jax.tree.structure(expected)
  for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=atol)


@functools.partial(jax.jit, static_argnames='beta')
def chunked(mask, count, temperature, beta):
  """((loss, metrics), gradients) from hidden states and heads."""

  def loss(hidden, head):
    return losses.distill_loss_chunked(
      hidden,
      head,
      {'teacher': tuple(jnp.asarray(x) for x in TEACHER)},
      jnp.asarray(TOKEN),
      jnp.zeros((B, T)),
      {'opd': losses.Term(losses.divergence(JSD[beta]))},
      mask=mask,
      count=count,
      chunk_tokens=2 * B,  # the last chunk overlaps the one before
      temperature=temperature,
    )

  gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)
  return gradients(jnp.asarray(HIDDEN), jnp.asarray(HEAD))


# Kills beta exchanged with 1 - beta, in the mixture or before the divergences,
# a factor T^2, a temperature on one side, a mean over B * T or over rows, a
# denominator of the micro-batch where a global one is given (40), an entropy
# at temperature 1, tokens of an overlapping chunk counted twice.
@betas
@temperatures
@masks
@pytest.mark.parametrize('count', [None, 40])
def test_the_chunked_loss_is_that_of_trls_trainer(
  trl, count, mask, temperature, beta
):
  def loss(hidden, head):
    value, *sums[:] = trl['chunked'](
      hidden,
      tensor(TEACHER[0], 'float32'),
      head,
      tensor(TEACHER[1], 'float32'),
      tensor(mask, 'int64'),
      beta,
      num_items_in_batch=count,
      temperature=temperature,
    )
    return value

  sums = []  # student's entropy, live tokens
  # float32, since its kernel is that whatever comes in.
  expected = value_and_gradients(loss, HIDDEN, HEAD, dtype='float32')
  (value, metrics), gradients = chunked(
    mask, np.int32(count or mask.sum()), temperature, beta
  )
  assert_equal((value, gradients), expected)
  entropy, live = metrics['student_entropy']
  assert_equal((entropy, live), tuple(x.item() for x in sums), atol=1e-5)


@jax.jit
def jsd(mask, temperature):
  """{beta: (value, gradient)} from logits."""

  def loss(logits, beta):
    sides = (
      losses.log_probs(jnp.asarray(x), temperature=temperature)
      for x in (logits, TEACHER_LOGITS)
    )
    return losses.token_mean(JSD[beta](*sides), mask, jnp.sum(mask))

  return {beta: jax.value_and_grad(loss)(LOGITS, beta) for beta in BETAS}


# Kills the same in the plain definition, where autodiff takes both gradients
# and no side has them by hand.
@betas
@temperatures
@masks
def test_generalized_jsd_is_that_of_gkd(trl, mask, temperature, beta):
  def loss(logits):
    target, labels = tensor(TEACHER_LOGITS), np.where(mask, TOKEN, -100)
    labels = tensor(labels, 'int64')
    return trl['gkd'](logits, target, labels, beta, temperature)

  value, (gradient,) = value_and_gradients(loss, LOGITS)
  assert_equal(jsd(mask, temperature)[beta], (value, gradient))


@functools.partial(jax.jit, static_argnames=('k', 'tail'))
def on_support(k=None, tail=None):
  """{beta: (value, gradient)} on the student's top k, or on all."""

  def loss(logits, beta):
    sides = (losses.log_probs(jnp.asarray(x)) for x in (logits, TEACHER_LOGITS))
    if k:
      sides = losses.top_k(*sides, k=k, of='student', tail=tail)
    return jnp.sum(WEIGHT * JSD[beta](*sides))

  return {beta: jax.value_and_grad(loss)(LOGITS, beta) for beta in BETAS}


def value_and_gradient_of_weighted(loss, **kwargs):
  """The same from TRL's per-token losses of logits."""

  def weighted(logits):
    per_token = loss(logits, tensor(TEACHER_LOGITS), **kwargs)
    return (tensor(WEIGHT) * per_token).sum()

  value, (gradient,) = value_and_gradients(weighted, LOGITS)
  return value, gradient


# Every token has a weight of its own, of either sign, so that no two make up
# for each other. Kills the teacher's top k in place of the student's, one side
# left unnormalised, a bucket without a gradient or with one side's mass.
@betas
@pytest.mark.parametrize('k', [1, 4])
@pytest.mark.parametrize('tail', ['renormalize', 'bucket'])
def test_losses_on_the_students_top_k_are_those_of_sdft(trl, tail, k, beta):
  expected = value_and_gradient_of_weighted(
    trl['top_k'],
    distillation_topk=k,
    distillation_alpha=beta,
    distillation_add_tail=tail == 'bucket',
  )
  assert_equal(on_support(k, tail)[beta], expected, atol=1e-5)


# Kills a divergence that is summed over tokens or averaged over ids.
@betas
def test_losses_on_the_whole_vocabulary_are_those_of_sdft(trl, beta):
  expected = value_and_gradient_of_weighted(
    trl['full'], distillation_alpha=beta
  )
  assert_equal(on_support()[beta], expected, atol=1e-5)


# SDFT's is sg[log p - log q] log p: a gradient, and a value without a meaning.
# Two of ours have that gradient. Kills an advantage of the wrong sign, one that
# is differentiated, and the neighbour's token.
@pytest.mark.parametrize(
  'objective',
  [losses.policy_gradient(losses.reinforce), losses.kl_estimate(losses.k2)],
  ids=['reinforce', 'k2'],
)
def test_the_gradient_on_the_sampled_token_is_that_of_sdft(trl, objective):
  expected = value_and_gradient_of_weighted(
    trl['kl_estimate'],
    completion_ids=tensor(TOKEN, 'int64'),
    distillation_alpha=1.0,
  )

  @jax.jit
  @jax.grad
  def gradient(logits):  # as hidden states: times the identity, they are logits
    return losses.distill_loss_chunked(
      logits,
      jnp.eye(V),
      {'teacher': (jnp.asarray(TEACHER_LOGITS), jnp.eye(V))},
      jnp.asarray(TOKEN),
      jnp.zeros((B, T)),
      {'opd': losses.Term(objective)},
      mask=jnp.ones((B, T), bool),
      reduce=lambda per_token, mask, count: jnp.sum(WEIGHT * per_token),
      count=1,
      with_stats=False,
    )[0]

  assert_equal(gradient(jnp.asarray(LOGITS)), expected[1], atol=1e-5)
