"""pick: the right distribution, at the right cost, whatever the neighbours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jopd.rollout.pick import Sampling, pick, sampling

_pick = jax.jit(pick)


def _logits(seed, batch, vocab, scale=2.0):
  return scale * jax.random.normal(jax.random.key(seed), (batch, vocab))


def _distribution(logits, temperature, top_k, top_p):
  """float64 oracle: temperature, top-k, top-p by sorting, as loops."""
  logits = np.asarray(logits, np.float64) / temperature
  order = np.argsort(-logits, kind='stable')
  kept = list(order[:top_k] if top_k else order)
  weight = np.exp(logits - logits.max())
  total = sum(weight[v] for v in kept)
  nucleus, mass = [], 0.0
  for v in kept:
    nucleus.append(v)
    mass += weight[v] / total
    if mass >= top_p:
      break
  p = np.zeros(len(logits))
  p[nucleus] = weight[nucleus] / weight[nucleus].sum()
  return p


SETTINGS = [
  (1.0, 0, 1.0),
  (0.7, 0, 1.0),
  (1.3, 5, 1.0),
  (1.0, 0, 0.8),
  (0.9, 12, 0.6),
]


# Kills: filters in another order (top-p before temperature gives another
# nucleus), top-p relative to the whole vocabulary after top-k.
@pytest.mark.parametrize(('temperature', 'top_k', 'top_p'), SETTINGS)
def test_frequencies_match_the_float64_distribution(temperature, top_k, top_p):
  draws, vocab = 20_000, 37
  logits = _logits(1, 1, vocab)
  p = _distribution(logits[0], temperature, top_k, top_p)
  picked = _pick(
    jnp.broadcast_to(logits, (draws, vocab)),
    jax.random.split(jax.random.key(2), draws),
    sampling(draws, temperature=temperature, top_k=top_k, top_p=top_p),
  )
  counts = np.bincount(np.asarray(picked.token), minlength=vocab)
  assert counts[p == 0].sum() == 0
  seen = p > 0
  chi2 = ((counts - draws * p)[seen] ** 2 / (draws * p[seen])).sum()
  freedom = seen.sum() - 1
  assert chi2 < freedom + 5 * np.sqrt(2 * freedom)
  np.testing.assert_allclose(
    picked.sampler_logp, np.log(p[picked.token]), atol=2e-5
  )


# Kills: recording the filtered log-prob as the model's.
def test_logp_is_the_raw_model_whatever_the_filters():
  logits = _logits(3, 64, 50)
  how = sampling(64, temperature=0.5, top_k=3, top_p=0.9)
  picked = _pick(logits, jax.random.split(jax.random.key(0), 64), how)
  want = jax.nn.log_softmax(logits)[jnp.arange(64), picked.token]
  np.testing.assert_allclose(picked.logp, want, atol=1e-6)


# Kills: greedy by a tiny temperature (overflow), or another index on ties.
def test_temperature_zero_is_argmax_and_certain():
  logits = _logits(4, 16, 130).at[:, 77].set(9.0).at[:, 90].set(9.0)
  picked = _pick(
    logits,
    jax.random.split(jax.random.key(0), 16),
    sampling(16, temperature=0.0),
  )
  np.testing.assert_array_equal(picked.token, jnp.argmax(logits, -1))
  np.testing.assert_array_equal(picked.sampler_logp, 0)


# A nucleus wider than the sorted head of the vocabulary takes the slow path.
# Kills: cutting the nucleus at the first 256 tokens.
def test_a_wide_nucleus_is_not_cut_off():
  vocab = 2000
  logits = jnp.zeros((1, vocab)).at[0, 0].set(1.0)
  how = sampling(1000, top_p=0.9)
  picked = _pick(
    jnp.broadcast_to(logits, (1000, vocab)),
    jax.random.split(jax.random.key(1), 1000),
    how,
  )
  # Ties with the last token kept are all kept: so everything is here.
  assert len(np.unique(picked.token)) > 600
  assert _distribution(logits[0], 1.0, 0, 0.9).astype(bool).sum() > 600


def test_one_row_filtered_leaves_the_others_alone():
  logits = _logits(5, 2, 300)
  keys = jax.random.split(jax.random.key(6), 2)
  plain = _pick(logits, keys, sampling(2))
  mixed = Sampling(jnp.ones(2), jnp.array([0, 4]), jnp.array([1.0, 0.5]))
  picked = _pick(logits, keys, mixed)
  assert picked.token[0] == plain.token[0]
  assert picked.sampler_logp[0] == plain.sampler_logp[0]
  assert picked.sampler_logp[1] > plain.sampler_logp[1]


# Kills: static sampling knobs, which recompile per setting (Tunix).
def test_settings_are_data_and_compile_nothing():
  traces = []

  @jax.jit
  def counted(*args):
    traces.append(0)
    return pick(*args)

  logits, keys = _logits(0, 3, 20), jax.random.split(jax.random.key(0), 3)
  for temperature, top_k, top_p in SETTINGS:
    counted(
      logits,
      keys,
      sampling(3, temperature=temperature, top_k=top_k, top_p=top_p),
    )
  assert len(traces) == 1


# Kills: a cumulative sum that rounds into a category of probability zero.
def test_impossible_tokens_are_never_picked():
  logits = jnp.full((20_000, 101), -jnp.inf).at[:, ::10].set(1e4)
  keys = jax.random.split(jax.random.key(8), 20_000)
  picked = _pick(logits, keys, sampling(20_000))
  assert set(np.unique(picked.token)) == set(range(0, 101, 10))
  np.testing.assert_allclose(picked.sampler_logp, -np.log(11), atol=1e-5)


@pytest.mark.parametrize(
  ('setting', 'message'),
  [
    ({'temperature': -0.1}, 'temperature must be >= 0'),
    ({'temperature': float('nan')}, 'temperature must be >= 0'),
    ({'top_k': -1}, 'top_k must be >= 0'),
    ({'top_p': 0.0}, r'top_p must be in \(0, 1\]'),
    ({'top_p': 1.1}, r'top_p must be in \(0, 1\]'),
  ],
)
def test_settings_out_of_range_are_refused(setting, message):
  with pytest.raises(ValueError, match=message):
    sampling(1, **setting)
