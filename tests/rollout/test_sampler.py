"""sample and score agree, and a row does not know its neighbours."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jopd import sharding
from jopd.models.decoder import DecoderConfig, make_model
from jopd.rollout.engine import make_generate
from jopd.rollout.pick import sampling
from jopd.rollout.sampler import sample
from jopd.rollout.score import score

ONE = sharding.make_mesh(devices=jax.devices()[:1])
VOCAB, SLOTS, STEPS, BATCH = 62, 7, 12, 8
MODEL = make_model(
  DecoderConfig(
    vocab_size=VOCAB,
    layers=2,
    embed=32,
    heads=4,
    kv_heads=2,
    head_dim=10,
    mlp=48,
    qk_norm=True,
    init_scale=0.3,
  )
)


@pytest.fixture(scope='module')
def params():
  return MODEL.init(jax.random.key(0))


@pytest.fixture(scope='module')
def prompts():
  tokens = jax.random.randint(jax.random.key(1), (BATCH, SLOTS), 0, VOCAB)
  return tokens, jnp.array([7, 1, 3, 5, 2, 7, 4, 6])


@partial(jax.jit, static_argnames='steps')
def _sample(params, tokens, lengths, keys, how, stop_ids, limit, steps=STEPS):
  return sample(
    MODEL,
    params,
    tokens,
    lengths,
    keys,
    how=how,
    stop_ids=stop_ids,
    limit=limit,
    max_new_tokens=steps,
  )


def _run(params, prompts, *, stop=(-1,), limit=STEPS, keys=None, **settings):
  tokens, lengths = prompts
  batch = len(tokens)
  if keys is None:
    keys = jax.random.split(jax.random.key(5), batch)
  return _sample(
    params,
    tokens,
    lengths,
    keys,
    sampling(batch, **settings),
    jnp.array(stop),
    jnp.broadcast_to(jnp.asarray(limit), batch),
  )


def _scored(params, rollout):
  hidden = score(
    MODEL, params, rollout.prompt, rollout.prompt_length, rollout.response
  )
  logp = jax.nn.log_softmax(hidden @ MODEL.head(params).T)
  return jnp.take_along_axis(logp, rollout.response[..., None], -1)[..., 0]


# Kills: a shift by one, a stale cache slot, positions that count padding.
def test_recorded_logp_is_what_score_computes(params, prompts):
  rollout = _run(params, prompts, stop=(3, 9))
  live = np.arange(STEPS) < np.asarray(rollout.response_length)[:, None]
  want = np.where(live, _scored(params, rollout), 0)
  np.testing.assert_allclose(rollout.logp, want, atol=3e-5)
  np.testing.assert_allclose(rollout.sampler_logp, want, atol=3e-5)


# Kills: conditioning on anything but the row's own prompt and response.
def test_score_is_the_model_on_each_row_alone(params, prompts):
  rollout = _run(params, prompts)
  scored = _scored(params, rollout)
  for b in (0, 1, 4):
    n = int(rollout.prompt_length[b])
    row = jnp.concatenate([rollout.prompt[b, :n], rollout.response[b]])[None]
    hidden, _ = MODEL.apply(params, row)
    logp = jax.nn.log_softmax(hidden @ MODEL.head(params).T)[0]
    want = [logp[n - 1 + t, row[0, n + t]] for t in range(STEPS)]
    np.testing.assert_allclose(scored[b], want, atol=3e-5)


# Kills: keys by row index or by batch, reductions over the batch.
def test_a_row_does_not_depend_on_its_neighbours(params, prompts):
  tokens, lengths = prompts
  keys = jax.random.split(jax.random.key(5), BATCH)
  together = _run(params, prompts, keys=keys)
  order = jnp.array([4, 0, 6])
  apart = _run(params, (tokens[order], lengths[order]), keys=keys[order])
  np.testing.assert_array_equal(apart.response, together.response[order])
  np.testing.assert_allclose(apart.logp, together.logp[order], atol=1e-5)


# Kills: masks from pad ids. Whatever stands in the padding is not read.
def test_prompt_padding_is_never_read(params, prompts):
  tokens, lengths = prompts
  junk = jnp.where(
    jnp.arange(SLOTS)[None] < lengths[:, None], tokens, VOCAB - 1
  )
  clean = _run(params, prompts)
  np.testing.assert_array_equal(
    clean.response, _run(params, (junk, lengths)).response
  )


# Kills: one stop id only, a stop token that is not part of the response.
def test_each_stop_id_ends_a_row_and_is_kept(params, prompts):
  free = np.asarray(_run(params, prompts).response)
  stop = (int(free[0, 4]), int(free[1, 2]), -1)
  rollout = _run(params, prompts, stop=stop)
  for b in range(BATCH):
    hits = np.flatnonzero(np.isin(free[b], stop))
    n = hits[0] + 1 if len(hits) else STEPS
    assert rollout.response_length[b] == n
    assert rollout.stopped[b] == bool(len(hits))
    np.testing.assert_array_equal(rollout.response[b, :n], free[b, :n])
    np.testing.assert_array_equal(rollout.response[b, n:], 0)
    np.testing.assert_array_equal(rollout.logp[b, n:], 0)
  assert rollout.stopped[:2].all()


def test_each_row_has_its_own_limit(params, prompts):
  limit = jnp.array([1, 12, 3, 5, 12, 2, 7, 1])
  free, cut = _run(params, prompts), _run(params, prompts, limit=limit)
  np.testing.assert_array_equal(cut.response_length, limit)
  assert not cut.stopped.any()
  live = np.arange(STEPS) < np.asarray(limit)[:, None]
  np.testing.assert_array_equal(cut.response, np.where(live, free.response, 0))


def test_greedy_is_the_argmax_of_every_prefix(params, prompts):
  rollout = _run(params, prompts, temperature=0.0)
  hidden = score(
    MODEL, params, rollout.prompt, rollout.prompt_length, rollout.response
  )
  want = jnp.argmax(hidden @ MODEL.head(params).T, axis=-1)
  np.testing.assert_array_equal(rollout.response, want)


# Kills: running all T steps when every row ended at the first.
def test_the_loop_ends_with_the_last_row(params, prompts):
  calls = []

  def apply(*args):
    jax.debug.callback(lambda: calls.append(0))
    return MODEL.apply(*args)

  tokens, lengths = prompts
  jax.block_until_ready(
    jax.jit(
      lambda *a: sample(
        MODEL._replace(apply=apply),
        *a,
        how=sampling(BATCH),
        stop_ids=jnp.array([-1]),
        limit=jnp.full(BATCH, 3),
        max_new_tokens=STEPS,
      )
    )(params, tokens, lengths, jax.random.split(jax.random.key(0), BATCH))
  )
  jax.effects_barrier()
  assert len(calls) == 3  # prefill, and a step for each token but the first


# Kills: padding ids of the head (Qwen pads its vocabulary) being sampled.
def test_padding_ids_of_the_head_are_never_picked(params, prompts):
  real = 11
  generate = make_generate(
    MODEL,
    ONE,
    stop_ids=(-1,),
    max_new_tokens=STEPS,
    vocab_size=real,
  )
  tokens, lengths = map(np.asarray, prompts)
  rollout = generate(params, tokens % real, lengths, jax.random.key(0))
  assert rollout.response.max() < real
  assert np.isfinite(rollout.logp).all()


# Kills: keys that depend on the device, a cache split wrongly over heads.
@pytest.mark.parametrize(
  'axes', [dict(data=8), dict(data=2, fsdp=2, tensor=2)], ids=str
)
def test_the_mesh_does_not_change_the_tokens(params, prompts, axes):
  results = []
  for mesh in (ONE, sharding.make_mesh(**axes)):
    placed = jax.device_put(
      params, sharding.param_shardings(mesh, MODEL.axes, params)
    )
    generate = make_generate(MODEL, mesh, stop_ids=(3,), max_new_tokens=STEPS)
    results.append(
      jax.device_get(
        generate(placed, *map(np.asarray, prompts), jax.random.key(7))
      )
    )
  one, many = results
  np.testing.assert_array_equal(one.response, many.response)
  np.testing.assert_allclose(one.logp, many.logp, atol=1e-5)


def test_another_call_with_other_settings_compiles_nothing(params, prompts):
  generate = make_generate(MODEL, ONE, stop_ids=(3,), max_new_tokens=STEPS)
  tokens, lengths = map(np.asarray, prompts)
  for settings in ({}, {'temperature': 0.3}, {'top_k': 5, 'top_p': 0.5}):
    generate(params, tokens, lengths, jax.random.key(1), **settings)
  assert generate.program.compilations == 1
