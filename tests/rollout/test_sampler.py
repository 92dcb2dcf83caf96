"""sample and score agree, and a row does not know its neighbours."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jopd import sharding
from jopd.data.tokenizer import builtin_tokenizer
from jopd.models.decoder import DecoderConfig, make_model
from jopd.models.int8 import dequantize, quantize, quantize_params
from jopd.rollout.continuous_batching import LENGTH, STOP
from jopd.rollout.decode import make_policy
from jopd.rollout.engine import make_generate
from jopd.rollout.sampler import sample
from jopd.rollout.sampling import make_sampling_params
from jopd.rollout.score import score
from jopd.rollout.stop_criteria import make_stops

ONE = sharding.make_mesh(devices=jax.devices()[:1])
VOCAB, SLOTS, STEPS, BATCH = 62, 7, 12, 8
STOPS = make_stops((3,))
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


STATIC = ('max_new_tokens', 'group_size', 'max_num_seqs', 'shards')


@partial(jax.jit, static_argnames=STATIC)
def _sample(params, tokens, lengths, keys, **options):
  return sample(make_policy(MODEL), params, tokens, lengths, keys, **options)


def _run(params, prompts, *, stop=(), limit=STEPS, keys=None, **options):
  static = {k: options.pop(k) for k in STATIC if k in options}
  tokens, lengths = prompts
  rows = len(tokens) * static.get('group_size', 1)
  if keys is None:
    keys = jax.random.split(jax.random.key(5), rows)
  return _sample(
    params,
    tokens,
    lengths,
    keys,
    sampling=make_sampling_params(rows, max_new_tokens=limit, **options),
    stops=make_stops(stop),
    **{'max_new_tokens': STEPS} | static,
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
  stop = (int(free[0, 4]), int(free[1, 2]))
  rollout = _run(params, prompts, stop=stop)
  for b in range(BATCH):
    hits = np.flatnonzero(np.isin(free[b], stop))
    n = hits[0] + 1 if len(hits) else STEPS
    assert rollout.response_length[b] == n
    assert rollout.end_reason[b] == (STOP if len(hits) else LENGTH)
    np.testing.assert_array_equal(rollout.response[b, :n], free[b, :n])
    np.testing.assert_array_equal(rollout.response[b, n:], 0)
    np.testing.assert_array_equal(rollout.logp[b, n:], 0)
  assert (rollout.end_reason[:2] == STOP).all()


def test_each_row_has_its_own_max_new_tokens(params, prompts):
  limit = jnp.array([1, 12, 3, 5, 12, 2, 7, 1])
  free, cut = _run(params, prompts), _run(params, prompts, limit=limit)
  np.testing.assert_array_equal(cut.response_length, limit)
  assert (cut.end_reason == LENGTH).all()
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
        make_policy(MODEL._replace(apply=apply)),
        *a,
        sampling=make_sampling_params(BATCH, max_new_tokens=3),
        stops=make_stops(()),
        max_new_tokens=STEPS,
      )
    )(params, tokens, lengths, jax.random.split(jax.random.key(0), BATCH))
  )
  jax.effects_barrier()
  assert len(calls) == 4  # prefill, and a step for each token


# Kills: padding ids of the head (Qwen pads its vocabulary) being sampled.
def test_padding_ids_of_the_head_are_never_sampled(params, prompts):
  real = 11
  generate = make_generate(
    make_policy(MODEL, vocab_size=real), ONE, max_new_tokens=STEPS
  )
  tokens, lengths = map(np.asarray, prompts)
  rollout = generate(
    params, tokens % real, lengths, jax.random.key(0), stops=make_stops(())
  )
  assert rollout.response.max() < real
  assert np.isfinite(rollout.logp).all()


# Kills: a number of the first row that shifts the prompts or the draws inside a
# row, and a limit or a setting of a row that reaches its neighbours.
def test_a_batch_can_be_asked_for_in_parts(params, prompts):
  tokens, lengths = map(np.asarray, prompts)
  temperature = np.array([0, 1, 2, 1, 0, 3, 1, 0])
  generate = make_generate(MODEL, ONE, max_new_tokens=STEPS)
  ask = lambda part, **options: jax.device_get(
    generate(
      *(params, tokens[part], lengths[part], jax.random.key(3)),
      **dict(stops=STOPS, temperature=temperature[part]),
      **options,
    ).response
  )
  whole = ask(slice(None))
  np.testing.assert_array_equal(ask(slice(4, 8), first_row=4), whole[4:])


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
    generate = make_generate(MODEL, mesh, max_new_tokens=STEPS)
    results.append(
      jax.device_get(
        generate(
          placed, *map(np.asarray, prompts), jax.random.key(7), stops=STOPS
        )
      )
    )
  one, many = results
  np.testing.assert_array_equal(one.response, many.response)
  np.testing.assert_allclose(one.logp, many.logp, atol=1e-5)


# Kills: stops, settings or the first row's number as constants of the program,
# and shapes that follow the number of stop ids or the bytes of the strings.
def test_another_call_with_other_settings_compiles_nothing(params, prompts):
  tokenizer = builtin_tokenizer()
  stop = lambda ids, *strings: make_stops(
    ids, strings=strings, tokenizer=tokenizer, vocab_size=len(tokenizer)
  )
  generate = make_generate(MODEL, ONE, max_new_tokens=STEPS)
  call = params, *map(np.asarray, prompts), jax.random.key(1)
  free = generate(*call, stops=stop([], 'never'))
  np.testing.assert_array_equal(free.end_reason, LENGTH)
  token = int(free.response[0, 4])
  for settings in (
    dict(stops=stop([token], '##', 'The answer')),
    dict(stops=stop([1, 2, token, 4], 'fifteen letters')),
    dict(stops=stop([], tokenizer.decode(token))),
  ):
    ended = generate(*call, **settings)
    length = int(ended.response_length[0])
    assert length <= 5 and ended.end_reason[0] == STOP
    np.testing.assert_array_equal(
      ended.response[0, :length], free.response[0, :length]
    )
  for settings in (
    dict(temperature=0.3, first_row=8),
    dict(top_k=5, top_p=0.5),
    dict(temperature=np.linspace(0, 1, BATCH), max_new_tokens=3),
  ):
    generate(*call, stops=stop([], 'never'), **settings)
  assert generate.program.compilations == 1


# Kills: prompts that lose tokens where a batch is cut, a size compiled twice.
def test_short_prompts_are_cut_to_a_bucket(params, prompts):
  compiled = []
  one, two = (
    make_generate(MODEL, ONE, max_new_tokens=STEPS, num_length_buckets=n)
    for n in (1, 2)
  )
  tokens, lengths = map(np.asarray, prompts)
  for most in (4, 3, 7, 2):
    args = params, tokens, np.minimum(lengths, most), jax.random.key(most)
    whole, cut = one(*args, stops=STOPS), two(*args, stops=STOPS)
    np.testing.assert_array_equal(whole.response, cut.response)
    np.testing.assert_allclose(whole.logp, cut.logp, atol=1e-5)
    compiled.append((cut.prompt.shape[1], two.program.compilations))
  assert compiled == [(4, 1), (4, 1), (7, 2), (4, 2)]


# Kills: recording log-probs of the exact weights, a head that stays exact.
def test_int8_rollouts_are_those_of_the_rounded_model(params, prompts):
  generate = make_generate(
    make_policy(MODEL, int8=True), ONE, max_new_tokens=STEPS
  )
  args = params, *map(np.asarray, prompts), jax.random.key(2)
  rollout = generate(*args, stops=STOPS)
  rounded = quantize_params(params, MODEL.axes)
  rounded['head'] = quantize(params['head'], shared=(1,))
  rounded = dequantize(rounded, jnp.float32)
  lengths = np.asarray(rollout.response_length)
  live = np.arange(STEPS) < lengths[:, None]
  off = lambda params: np.abs(_scored(params, rollout) - rollout.logp)[live]
  assert off(rounded).max() < 2e-5
  assert off(params).mean() > 1e-3


# Kills: a slot that keeps a trace of its former row (its cache, its length, its
# random key), a row that is lost, answered twice, or put in another's place.
@pytest.mark.parametrize('slots', [1, 3])
def test_rows_do_not_depend_on_the_number_of_slots(params, prompts, slots):
  limit = jnp.array([1, 12, 3, 5, 12, 2, 7, 1])
  settings = dict(stop=(3, 9), limit=limit, temperature=1.5)
  whole = _run(params, prompts, **settings)
  queued = _run(params, prompts, max_num_seqs=slots, **settings)
  for name in ('response', 'response_length', 'end_reason'):
    np.testing.assert_array_equal(
      getattr(queued, name), getattr(whole, name), err_msg=name
    )
  for name in ('logp', 'sampler_logp'):
    np.testing.assert_allclose(
      getattr(queued, name), getattr(whole, name), atol=1e-5, err_msg=name
    )


# 43 tokens in 3 slots; the longest row has 12. Kills a queue that waits for
# all slots to be free.
def test_free_slots_are_refilled_at_once(params, prompts):
  limit = jnp.array([1, 12, 3, 5, 12, 2, 7, 1])
  rollout = _run(params, prompts, limit=limit, max_num_seqs=3)
  tokens = int(rollout.response_length.sum())
  assert tokens == 43
  # Rows 0, 1, 2 begin; the slot of row 0 is free after a step, and so on.
  assert rollout.slot_steps == 3 * _steps_by_hand(limit.tolist(), 3)
  assert tokens / rollout.slot_steps > 0.75
  batches = [limit[:3].max(), limit[3:6].max(), limit[6:].max()]
  assert rollout.slot_steps < 3 * sum(batches)


def _steps_by_hand(limits, slots):
  """The decoding steps if free slots are refilled at once."""
  busy = [0] * slots
  for limit in limits:
    first = busy.index(min(busy))
    busy[first] += limit
  return max(busy)


# Kills: one prefill per answer, answers of a group that are all the same, and
# row g of prompt i at another place.
def test_a_group_shares_its_prompts_prefill(params, prompts):
  tokens, lengths = prompts
  group = _run(params, prompts, group_size=3, max_num_seqs=6)
  each = (jnp.repeat(tokens, 3, axis=0), jnp.repeat(lengths, 3))
  alone = _run(params, each)
  np.testing.assert_array_equal(group.response, alone.response)
  np.testing.assert_array_equal(group.prompt, each[0])
  np.testing.assert_array_equal(group.prompt_length, each[1])
  assert (group.response[0] != group.response[1]).any()


# Kills: a cache that does not grow, or grows over what it held.
# With refilled slots: test_both_caches_grow of test_teacher_mixing.py.
def test_a_growing_cache_changes_nothing(params, prompts):
  tokens, lengths = prompts
  prompts = tokens[:4], lengths[:4]
  limit = jnp.array([150, 20, 90, 40])
  rollout = _run(params, prompts, max_new_tokens=160, limit=limit)
  np.testing.assert_array_equal(rollout.response_length, limit)
  live = np.arange(160) < np.asarray(limit)[:, None]
  want = np.where(live, _scored(params, rollout), 0)
  np.testing.assert_allclose(rollout.logp, want, atol=5e-5)


# Kills: queues that hand rows from one device to another, and a mesh on which
# the answers come back in another order.
def test_the_mesh_does_not_change_refilled_rows(params, prompts):
  limit = np.array([1, 12, 3, 5, 12, 2, 7, 1] * 2)
  results = []
  for mesh in (ONE, sharding.make_mesh(data=2, fsdp=2, tensor=2)):
    placed = jax.device_put(
      params, sharding.param_shardings(mesh, MODEL.axes, params)
    )
    generate = make_generate(
      MODEL, mesh, max_new_tokens=STEPS, group_size=2, max_num_seqs=4
    )
    inputs = *map(np.asarray, prompts), jax.random.key(7)
    rollout = generate(placed, *inputs, stops=STOPS, max_new_tokens=limit)
    results.append(jax.device_get(rollout))
  one, many = results
  np.testing.assert_array_equal(one.response, many.response)
  np.testing.assert_array_equal(one.end_reason, many.end_reason)
  np.testing.assert_allclose(one.logp, many.logp, atol=1e-5)


# Kills: a mesh with more parts than there are prompts, which could hold all of
# the rows but not the prompts.
def test_a_group_may_lie_on_several_devices(params, prompts):
  few = [np.asarray(x)[:2] for x in prompts]
  results = []
  for mesh in (ONE, sharding.make_mesh(data=8)):
    placed = jax.device_put(
      params, sharding.param_shardings(mesh, MODEL.axes, params)
    )
    generate = make_generate(MODEL, mesh, max_new_tokens=STEPS, group_size=8)
    rollout = generate(placed, *few, jax.random.key(7), stops=STOPS)
    results.append(jax.device_get(rollout))
  one, many = results
  np.testing.assert_array_equal(one.response, many.response)
  np.testing.assert_array_equal(
    many.prompt[:, :4], np.repeat(few[0], 8, axis=0)[:, :4]
  )
  with pytest.raises(ValueError, match='a batch of 10 rows cannot be divided'):
    make_generate(MODEL, mesh, max_new_tokens=STEPS, group_size=5)(
      placed, *few, jax.random.key(7), stops=STOPS
    )


@pytest.mark.parametrize('limit', [0, 13, [1] * 7 + [0]])
def test_max_new_tokens_out_of_range_is_refused(params, prompts, limit):
  generate = make_generate(MODEL, ONE, max_new_tokens=STEPS)
  with pytest.raises(ValueError, match=r'max_new_tokens must be in \[1, 12\]'):
    generate(
      params,
      *map(np.asarray, prompts),
      jax.random.key(0),
      **dict(stops=STOPS, max_new_tokens=limit),
    )


# Kills: an empty prompt, whose last token would be the last of its padding.
@pytest.mark.parametrize('length', [0, SLOTS + 1])
def test_prompt_lengths_out_of_range_are_refused(params, prompts, length):
  generate = make_generate(MODEL, ONE, max_new_tokens=STEPS)
  lengths = np.array([1] * 7 + [length])
  with pytest.raises(ValueError, match=r'prompt_length must be in \[1, 7\]'):
    generate(
      *(params, np.asarray(prompts[0]), lengths, jax.random.key(0)),
      stops=STOPS,
    )


def test_max_num_seqs_that_the_mesh_cannot_divide_is_refused():
  mesh = sharding.make_mesh(data=8)
  with pytest.raises(ValueError, match='a multiple of the 8 parts'):
    make_generate(MODEL, mesh, max_new_tokens=4, max_num_seqs=4)
