"""Prefill and decoding, compiled from shapes."""

from collections.abc import Iterator
import dataclasses

import jax
import jax.numpy as jnp

from jopd import sharding
from jopd.models.api import Model
from jopd.models.architecture import DecoderConfig
from jopd.models.decoder import make_model
from jopd.plan import hlo, inputs
from jopd.plan.program import Phase
from jopd.rollout.continuous_batching import DecodeShape
from jopd.rollout.decode import make_policy
from jopd.rollout.sampler import advance, cache_lengths, prefill
from jopd.run.build import kernel_config

DEPTHS = (2, 4)  # at which deeper models are measured


def rollout(stage, run, name, policy, asked, held, compiled) -> Iterator[Phase]:
  """Prefill, and one decoding step of every slot with the largest cache.

  Their layers are unrolled, so that the time to compile grows with the depth. A
  deep model is measured at two depths and extrapolated: its layers are alike.
  """
  model: Model = run.models[name]
  depth = model.config.layers
  dtype = jax.tree.leaves(policy)[0].dtype
  if depth <= DEPTHS[-1]:
    yield from _decoding(stage, run, model, policy, asked, held, compiled)
    return
  measured = []
  for layers in DEPTHS:
    shallow = make_model(
      _cut(model.config, layers),
      constrain=sharding.constrain_batch(run.mesh),
      kernels=kernel_config(run.mesh),
    )
    shapes = jax.eval_shape(shallow.init, jax.random.key(0))
    where = sharding.param_shardings(run.mesh, shallow.axes, shapes)
    params = inputs.cast(inputs.place(shapes, where), dtype)
    label = lambda name, *args, n=layers: compiled(f'{name}, {n} layers', *args)
    found = _decoding(stage, run, shallow, params, asked, held, label)
    measured.append(list(found))
  few, many = DEPTHS
  more = (depth - few) / (many - few)
  for pair in zip(*measured, strict=True):
    yield _between(*pair, more)


def _cut(config: DecoderConfig, layers: int) -> DecoderConfig:
  """An architecture with fewer layers."""
  sliding = config.sliding[:layers]
  window = config.window if any(sliding) else None
  return dataclasses.replace(
    config, layers=layers, sliding=sliding, window=window
  )


def _between(few: Phase, many: Phase, more: float) -> Phase:
  """The phase at few + more * (many - few) layers."""

  def line(a, b):
    if isinstance(a, dict):
      return {key: line(a.get(key, 0.0), b[key]) for key in b}
    return max(0.0, a + more * (b - a))

  return few._replace(
    memory=line(few.memory, many.memory),
    flops=line(few.flops, many.flops),
    kernels=line(few.kernels, many.kernels),
    useful=line(few.useful, many.useful),
    least=few.least and line(few.least, many.least),
    cost=hlo.Cost(*map(line, few.cost, many.cost)),
    seconds=few.seconds + many.seconds,
  )


def _decoding(
  stage, run, model: Model, params, asked, held, compiled
) -> Iterator[Phase]:
  """The two compiled phases of a rollout."""
  shards = sharding.batch_parts(run.mesh)
  prompts, width = asked[0].shape
  rows = prompts * stage.rollouts.group_size
  slots = min(stage.rollouts.decoding['max_num_seqs'] or rows, rows)
  longest = run.max_new_tokens
  shape = DecodeShape(
    rows // shards, slots // shards, shards, stage.rollouts.group_size, longest
  )
  sizes = cache_lengths(width, longest)
  policy = make_policy(
    model,
    vocab_size=run.vocab_size,
    dtype=stage.rollouts.decoding['dtype'],
    int8=stage.rollouts.decoding['int8'],
  )

  def begin(params, prompt, prompt_length, sampling, key, stops):
    key = jax.random.wrap_key_data(key)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))
    return prefill(
      policy,
      shape,
      params,
      prompt,
      prompt_length,
      keys,
      sampling=sampling,
      stops=stops,
      cache_length=sizes[-1],
    )

  first = compiled('prefill', jax.jit(begin), params, *asked)
  yield first.phase('prefill', 1, held, asked)
  work, state = first.results
  token = jax.jit(
    lambda work, state: advance(policy, shape, work, state), donate_argnums=1
  )
  then = compiled('decode', token, work, state)
  weights = dict(work.weights.params)
  del weights['embed']  # a token reads one row of it; the head is apart
  cache = inputs.local_bytes(state.cache)
  yield then.phase(
    'decode',
    -(-rows * longest // slots),
    held,
    (work, state),
    least=inputs.local_bytes((weights, work.weights.head)) + cache,
    # While the cache grows, the smaller one is still there.
    grown=cache * sizes[-2] / sizes[-1] if len(sizes) > 1 else 0,
  )
