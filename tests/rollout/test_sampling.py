"""`sample_token` draws from the right distribution, row by row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jopd.rollout.sampling import (
  SamplingParams,
  _smallest_kept,
  make_sampling_params,
  sample_token,
)

_sample = jax.jit(sample_token)


def _logits(seed, batch, vocab, scale=2.0):
  return scale * jax.random.normal(jax.random.key(seed), (batch, vocab))


def _distribution(logits, temperature, top_k, top_p, min_p):
  """float64 oracle: the filters one after the other, by sorting, as loops."""
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
  nucleus = [v for v in nucleus if weight[v] >= min_p]
  p = np.zeros(len(logits))
  p[nucleus] = weight[nucleus] / weight[nucleus].sum()
  return p


SETTINGS = [
  (1.0, 0, 1.0, 0.0),
  (0.7, 0, 1.0, 0.0),
  (1.3, 5, 1.0, 0.0),
  (1.0, 0, 0.8, 0.0),
  (0.9, 12, 0.6, 0.0),
  (1.4, 0, 1.0, 0.3),
  (1.4, 20, 0.9, 0.05),
]
NAMES = ('temperature', 'top_k', 'top_p', 'min_p')


# Kills: filters in another order (top-p before temperature gives another
# nucleus), top-p relative to the whole vocabulary after top-k, min-p before
# temperature, a sampler_logp of what was not renormalised.
@pytest.mark.parametrize('setting', SETTINGS)
def test_frequencies_match_the_float64_distribution(setting):
  draws, vocab = 20_000, 37
  logits = _logits(1, 1, vocab)
  p = _distribution(logits[0], *setting)
  sampled = _sample(
    jnp.broadcast_to(logits, (draws, vocab)),
    jax.random.split(jax.random.key(2), draws),
    make_sampling_params(draws, **dict(zip(NAMES, setting, strict=True))),
  )
  counts = np.bincount(np.asarray(sampled.token), minlength=vocab)
  assert counts[p == 0].sum() == 0
  seen = p > 0
  chi2 = ((counts - draws * p)[seen] ** 2 / (draws * p[seen])).sum()
  freedom = seen.sum() - 1
  assert chi2 < freedom + 5 * np.sqrt(2 * freedom)
  np.testing.assert_allclose(
    sampled.sampler_logp, np.log(p[sampled.token]), atol=2e-5
  )


# Kills: recording the filtered log-prob as the model's.
def test_logp_is_the_raw_model_whatever_the_filters():
  logits = _logits(3, 64, 50)
  params = make_sampling_params(64, temperature=0.5, top_k=3, top_p=0.9)
  sampled = _sample(logits, jax.random.split(jax.random.key(0), 64), params)
  want = jax.nn.log_softmax(logits)[jnp.arange(64), sampled.token]
  np.testing.assert_allclose(sampled.logp, want, atol=1e-6)


# Kills: greedy by a tiny temperature (overflow), or another index on ties.
def test_temperature_zero_is_argmax_and_certain():
  logits = _logits(4, 16, 130).at[:, 77].set(9.0).at[:, 90].set(9.0)
  sampled = _sample(
    logits,
    jax.random.split(jax.random.key(0), 16),
    make_sampling_params(16, temperature=0.0),
  )
  np.testing.assert_array_equal(sampled.token, jnp.argmax(logits, -1))
  np.testing.assert_array_equal(sampled.sampler_logp, 0)


@jax.jit
def _weights_and_cutoff(logits, params):
  weight = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
  return weight, _smallest_kept(weight, jnp.sum(weight, axis=-1), params)


def _shapes_of_rows(vocab):
  """Rows of logits unlike each other: flat, peaked, tied, mostly impossible."""
  rng = np.random.default_rng(vocab)
  normal = rng.standard_normal((40, vocab)).astype(np.float32)
  scale = np.geomspace(0.01, 8, 40).astype(np.float32)[:, None]
  holes = np.where(rng.random((40, vocab)) < 0.5, -np.inf, 3 * normal)
  holes[:, 0] = 0.0
  spike = scale * normal
  spike[np.arange(40), rng.integers(vocab, size=40)] += 12.0
  one = np.full((1, vocab), -np.inf, np.float32)
  one[0, vocab // 2] = 3.0
  tied = np.asarray(jnp.asarray(scale * normal, jnp.bfloat16), np.float32)
  rows = [scale * normal, tied, holes, spike, one, np.zeros((1, vocab))]
  return np.concatenate(rows).astype(np.float32)


VOCABS = (7, 1021, 4096)  # the second is prime


# Kills: a search that stops early, that loses ties, or counts a -inf.
@pytest.mark.parametrize('vocab', VOCABS)
def test_top_k_keeps_those_of_a_sort(vocab):
  logits = _shapes_of_rows(vocab)
  for top_k in (1, 2, 6, vocab // 2, vocab - 1, vocab, 10 * vocab):
    params = make_sampling_params(len(logits), top_k=top_k)
    weight, cutoff = map(np.asarray, _weights_and_cutoff(logits, params))
    want = np.sort(weight, axis=-1)[:, -min(top_k, vocab)]
    np.testing.assert_array_equal(
      weight >= cutoff[:, None], weight >= want[:, None]
    )


# The set must be the nucleus of a top_p as near to the one asked for as the
# documentation says. Kills: masses summed in float32 one after the other, a
# cumulative sum from above (near 1 it cannot resolve 1 - top_p), a nucleus
# without the token that crosses top_p, or with the next one.
@pytest.mark.parametrize('top_k', [0, 5])
@pytest.mark.parametrize('vocab', VOCABS)
def test_top_p_keeps_those_of_a_float64_sort(vocab, top_k):
  logits = _shapes_of_rows(vocab)
  for top_p in (1e-9, 0.01, 0.5, 0.9, 0.95, 0.999, 1 - 1e-5, 1 - 1e-7):
    params = make_sampling_params(len(logits), top_p=top_p, top_k=top_k)
    weight, cutoff = map(np.asarray, _weights_and_cutoff(logits, params))
    top_p = float(np.float32(top_p))
    within = 1e-5 * (1 - top_p) + 2e-8
    for row, least in zip(weight.astype(np.float64), cutoff, strict=True):
      by_k = np.sort(row)[-top_k] if 0 < top_k < vocab else 0.0
      of = np.sort(row[row >= by_k])
      share = lambda kept, of=of: 1 - of[~kept].sum() / of.sum()
      last = of[of >= least].min()
      assert share(of >= least) >= top_p - within
      # Without the last ones kept it falls short, but for the likeliest.
      assert last == of[-1] or share(of > last) < top_p + within
      assert last >= by_k


# Kills: a probability threshold that is not relative to the likeliest.
def test_min_p_is_a_share_of_the_likeliest():
  logits = jnp.log(jnp.array([[0.4, 0.25, 0.2, 0.1, 0.05]]))
  params = make_sampling_params(1, min_p=0.45)  # of 0.4: 0.18
  weight, cutoff = _weights_and_cutoff(logits, params)
  assert (weight >= cutoff[:, None]).tolist() == [[True] * 3 + [False] * 2]


# Kills: a search that stops with the first row that is done, or one whose
# rows share an interval; a filter that reaches greedy rows.
def test_a_row_does_not_depend_on_its_neighbours():
  logits = jnp.asarray(_shapes_of_rows(1021))
  rows = len(logits)
  rng = np.random.default_rng(0)
  params = SamplingParams(
    jnp.asarray(rng.choice([0.0, 0.7, 1.0], rows), jnp.float32),
    jnp.asarray(rng.choice([0, 1, 40], rows), jnp.int32),
    jnp.asarray(rng.choice([0.3, 0.95, 1.0], rows), jnp.float32),
    jnp.asarray(rng.choice([0.0, 0.1], rows), jnp.float32),
    jnp.ones(rows, jnp.int32),
  )
  keys = jax.random.split(jax.random.key(3), rows)
  together = _sample(logits, keys, params)
  order = jnp.asarray(rng.permutation(rows))
  shuffled = _sample(*jax.tree.map(lambda x: x[order], (logits, keys, params)))
  for a, b in zip(together, shuffled, strict=True):
    np.testing.assert_array_equal(a[order], b)
  alone = jax.tree.map(lambda x: x[:, None], (logits, keys, params))
  for row in range(0, rows, 9):
    one = _sample(*jax.tree.map(lambda x, row=row: x[row], alone))
    assert one.token[0] == together.token[row]
    np.testing.assert_allclose(one.logp[0], together.logp[row], atol=1e-5)
    np.testing.assert_allclose(
      one.sampler_logp[0], together.sampler_logp[row], atol=1e-5
    )
  greedy = np.asarray(params.temperature) == 0
  np.testing.assert_array_equal(
    together.token[greedy], jnp.argmax(logits, -1)[greedy]
  )


def test_one_row_filtered_leaves_the_others_alone():
  logits = _logits(5, 2, 300)
  keys = jax.random.split(jax.random.key(6), 2)
  plain = _sample(logits, keys, make_sampling_params(2))
  mixed = SamplingParams(
    jnp.ones(2),
    jnp.array([0, 4]),
    jnp.array([1.0, 0.5]),
    jnp.zeros(2),
    jnp.ones(2, jnp.int32),
  )
  sampled = _sample(logits, keys, mixed)
  assert sampled.token[0] == plain.token[0]
  assert sampled.sampler_logp[0] == plain.sampler_logp[0]
  assert sampled.sampler_logp[1] > plain.sampler_logp[1]


# Kills: static sampling knobs, which recompile per setting (Tunix).
def test_settings_are_data_and_compile_nothing():
  traces = []

  @jax.jit
  def counted(*args):
    traces.append(0)
    return sample_token(*args)

  logits, keys = _logits(0, 3, 20), jax.random.split(jax.random.key(0), 3)
  for setting in [*SETTINGS, (0.0, 0, 1.0, 0.0)]:
    params = make_sampling_params(3, **dict(zip(NAMES, setting, strict=True)))
    counted(logits, keys, params)
  assert len(traces) == 1


# Kills: a cumulative sum that rounds into a category of probability zero.
def test_impossible_tokens_are_never_sampled():
  logits = jnp.full((20_000, 101), -jnp.inf).at[:, ::10].set(1e4)
  keys = jax.random.split(jax.random.key(8), 20_000)
  sampled = _sample(logits, keys, make_sampling_params(20_000))
  assert set(np.unique(sampled.token)) == set(range(0, 101, 10))
  np.testing.assert_allclose(sampled.sampler_logp, -np.log(11), atol=1e-5)


@pytest.mark.parametrize(
  ('setting', 'message'),
  [
    ({'temperature': -0.1}, 'temperature must be >= 0'),
    ({'temperature': float('nan')}, 'temperature must be >= 0'),
    ({'temperature': np.array([1.0, -0.1])}, 'temperature must be >= 0'),
    ({'top_k': -1}, 'top_k must be >= 0'),
    ({'top_p': 0.0}, r'top_p must be in \(0, 1\]'),
    ({'top_p': 1.1}, r'top_p must be in \(0, 1\]'),
    ({'min_p': -0.1}, r'min_p must be in \[0, 1\]'),
    ({'min_p': 1.1}, r'min_p must be in \[0, 1\]'),
  ],
)
def test_settings_out_of_range_are_refused(setting, message):
  with pytest.raises(ValueError, match=message):
    make_sampling_params(2, **setting)
