"""Two models write one response; by enumeration, and through the sampler."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jopd import sharding
from jopd.models.decoder import DecoderConfig, make_model
from jopd.rollout.decode import make_policy
from jopd.rollout.engine import make_generate
from jopd.rollout.sampler import sample
from jopd.rollout.sampling import make_sampling_params
from jopd.rollout.score import score
from jopd.rollout.stop_criteria import make_stops
from jopd.rollout.teacher_mixing import mix_policies, mixed, speculative

VOCAB, STEPS, BATCH = 62, 12, 8
SMALL = dict(layers=1, embed=16, heads=2, kv_heads=2, head_dim=8, mlp=24)
LARGE = dict(layers=2, embed=24, heads=4, kv_heads=2, head_dim=6, mlp=32)
STUDENT, TEACHER = (
  make_model(DecoderConfig(vocab_size=VOCAB, init_scale=0.4, **sizes))
  for sizes in (SMALL, LARGE)
)
POLICIES = make_policy(STUDENT), make_policy(TEACHER)
STOPS = make_stops((3, 9))


@pytest.fixture(scope='module')
def params():
  init = lambda model, seed: jax.jit(model.init)(jax.random.key(seed))
  return init(STUDENT, 0), init(TEACHER, 9)


@pytest.fixture(scope='module')
def prompts():
  tokens = jax.random.randint(jax.random.key(1), (BATCH, 7), 0, VOCAB)
  return tokens, jnp.array([7, 1, 3, 5, 2, 7, 4, 6])


def pairs(vocab, count=20):
  rng = np.random.default_rng(vocab)
  return rng.dirichlet(np.full(vocab, 0.6), (2, count))


# The coin and the two draws, enumerated.
@pytest.mark.parametrize('share', [0.0, 0.2, 0.7, 1.0])
def test_a_mixture_is_a_coin_between_two_draws(share):
  p, q = pairs(6)
  want = np.zeros_like(p)
  for writer, chance in ((p, 1 - share), (q, share)):
    for token in range(6):
      want[:, token] += chance * writer[:, token]
  found = jnp.exp(mixed(jnp.log(p), jnp.log(q), share=share))
  np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-30)


# Every proposal, and every replacement of it. Kills: a mass that is shared out
# again on the k, a replacement from the student, one from the k alone.
@pytest.mark.parametrize('k', [1, 2, 5, 6])
def test_a_speculative_token_is_proposed_then_replaced(k):
  p, q = pairs(6)
  want = np.zeros_like(p)
  for b in range(len(p)):
    likeliest = sorted(range(6), key=lambda token: -q[b, token])[:k]
    for proposed in range(6):
      if proposed in likeliest:
        want[b, proposed] += p[b, proposed]
        continue
      for replacement in range(6):
        want[b, replacement] += p[b, proposed] * q[b, replacement]
  np.testing.assert_allclose(want.sum(1), 1)
  found = jnp.exp(speculative(jnp.log(p), jnp.log(q), k=k))
  np.testing.assert_allclose(found, want, rtol=2e-5, atol=1e-30)
  if k == 6:
    np.testing.assert_allclose(found, p, rtol=1e-5, atol=1e-30)


# Kills: NaN from log 0, which padding and certain models have.
def test_impossible_tokens_stay_impossible():
  p = jnp.log(jnp.array([0.5, 0.5, 0.0, 0.0]))
  q = jnp.log(jnp.array([0.0, 1.0, 0.0, 0.0]))
  mix = jnp.exp(mixed(p, q, share=0.5))
  np.testing.assert_allclose(mix, [0.25, 0.75, 0, 0], rtol=1e-6)
  own = jnp.exp(speculative(p, q, k=1))
  np.testing.assert_allclose(own, [0, 1, 0, 0], rtol=1e-6)
  np.testing.assert_allclose(jnp.exp(speculative(q, q, k=2)), jnp.exp(q))


@pytest.mark.parametrize(
  'blend, part',
  [
    (partial(mixed, share=1.1), 'share must be in [0, 1], got 1.1'),
    (partial(mixed, share=-0.1), 'share must be in [0, 1], got -0.1'),
    (partial(speculative, k=0), 'k must be in [1, 4], got 0'),
    (partial(speculative, k=5), 'k must be in [1, 4], got 5'),
  ],
)
def test_settings_out_of_range_are_refused(blend, part):
  with pytest.raises(ValueError) as error:
    blend(jnp.zeros(4), jnp.zeros(4))
  assert part in str(error.value)


@partial(jax.jit, static_argnames=('k', 'max_num_seqs', 'writer', 'steps'))
def _sample(
  params,
  tokens,
  lengths,
  share=None,
  k=None,
  writer=0,
  steps=STEPS,
  stops=STOPS,
  **options,
):
  """Of the pair where there is a share or a k, else of one of the two."""
  rows = len(tokens)
  row_key = partial(jax.random.fold_in, jax.random.key(5))
  policy = POLICIES[writer]
  if k is not None or share is not None:
    policy = mix_policies(*POLICIES, _mix(share, k))
  return sample(
    policy,
    params,
    tokens,
    lengths,
    jax.vmap(row_key)(jnp.arange(rows)),
    stops=stops,
    max_new_tokens=steps,
    **options,
  )


def _mix(share, k):
  # A share may be traced, so that all of them are one program.
  return partial(speculative, k=k) if k else partial(mixed, share=share)


def _run(params, prompts, temperature=1.0, limit=None, **options):
  sampling = make_sampling_params(
    len(prompts[0]),
    temperature=temperature,
    max_new_tokens=options.get('steps', STEPS) if limit is None else limit,
  )
  return _sample(params, *prompts, sampling=sampling, **options)


def _scored(model, params, rollout):
  hidden = score(
    model, params, rollout.prompt, rollout.prompt_length, rollout.response
  )
  return jax.nn.log_softmax(hidden @ model.head(params).T)


def _check_logps(params, rollout, blend, temperature=1.0):
  """Recorded log-probs are the student's and the blend's, scored afterwards."""
  own, other = map(_scored, (STUDENT, TEACHER), params, (rollout, rollout))
  sampled = jax.nn.log_softmax(blend(own, other) / temperature)
  steps = np.arange(rollout.response.shape[1])
  live = steps < np.asarray(rollout.response_length)[:, None]
  at = lambda logp: np.where(
    live,
    jnp.take_along_axis(logp, rollout.response[..., None], -1)[..., 0],
    0,
  )
  np.testing.assert_allclose(rollout.logp, at(own), atol=5e-5)
  np.testing.assert_allclose(rollout.sampler_logp, at(sampled), atol=5e-5)
  assert np.abs(at(own) - at(sampled)).max() > 0.1
  assert 20 < live.sum() and not live.all()


# Kills: the blend's log-prob where the student's is meant and the other way
# round, a model that reads another prefix, a temperature of one of the two.
@pytest.mark.parametrize(
  'blend, temperature',
  [(dict(share=0.3), 1.0), (dict(share=0.3), 1.5), (dict(k=3), 1.0)],
)
def test_recorded_logps_are_what_score_and_the_blend_compute(
  params, prompts, blend, temperature
):
  rollout = _run(params, prompts, temperature, **blend)
  both = _mix(blend.get('share'), blend.get('k'))
  _check_logps(params, rollout, both, temperature)


# Kills: one cache of the two that does not grow, or grows over what it held.
def test_both_caches_grow(params, prompts):
  tokens, lengths = prompts
  limit = jnp.array([150, 20, 90, 40])
  rollout = _run(
    params,
    (tokens[:4], lengths[:4]),
    k=3,
    max_num_seqs=2,
    steps=160,
    limit=limit,
    stops=make_stops(()),
  )
  np.testing.assert_array_equal(rollout.response_length, limit)
  _check_logps(params, rollout, _mix(None, 3))


# Kills: keys that a blend spends, and sides that are exchanged.
@pytest.mark.parametrize('share, writer', [(0.0, 0), (1.0, 1)])
def test_a_mixture_with_share_0_or_1_is_one_of_the_models(
  params, prompts, share, writer
):
  both = _run(params, prompts, share=share)
  alone = _run(params[writer], prompts, writer=writer)
  np.testing.assert_array_equal(both.response, alone.response)
  np.testing.assert_allclose(both.sampler_logp, alone.logp, atol=3e-5)
  np.testing.assert_array_equal(both.end_reason, alone.end_reason)


def _same(one, other):
  np.testing.assert_array_equal(one.response, other.response)
  for name in ('logp', 'sampler_logp'):
    np.testing.assert_allclose(
      getattr(one, name), getattr(other, name), atol=3e-5, err_msg=name
    )


# Kills: a second cache that is not admitted with its row, or keeps a trace of
# the former one.
def test_rows_do_not_depend_on_their_slots(params, prompts):
  whole = _run(params, prompts, k=3)
  _same(_run(params, prompts, k=3, max_num_seqs=3), whole)


# Kills: two models whose parts do not meet on the devices of a mesh.
def test_the_mesh_does_not_change_the_tokens(params, prompts):
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  placed = tuple(
    jax.device_put(own, sharding.param_shardings(mesh, model.axes, own))
    for model, own in zip((STUDENT, TEACHER), params, strict=True)
  )
  policy = mix_policies(*POLICIES, _mix(0.3, None))
  generate = make_generate(policy, mesh, max_new_tokens=STEPS)
  read = map(np.asarray, prompts)
  many = generate(placed, *read, jax.random.key(5), stops=STOPS)
  _same(jax.device_get(many), _run(params, prompts, share=0.3))
