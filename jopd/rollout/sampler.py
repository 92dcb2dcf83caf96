"""The compiled sampler: prefill, then a loop over response tokens."""

from functools import partial
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from jopd.rollout import continuous_batching as batching
from jopd.rollout.continuous_batching import (
  DecodeRequests,
  DecodeShape,
  DecodeState,
)
from jopd.rollout.decode import Policy, sample_next
from jopd.rollout.sampling import SamplingParams
from jopd.rollout.stop_criteria import Stops, step


class Rollout(NamedTuple):
  """Prompts and sampled responses, right-padded."""

  prompt: Array  # [B, P] int32
  prompt_length: Array  # [B] int32
  response: Array  # [B, T] int32, 0 beyond the length
  response_length: Array  # [B] int32, with the stop token
  logp: Array  # [B, T] of the model at temperature 1, unfiltered, nats
  sampler_logp: Array  # [B, T] of the distribution that was sampled, nats
  end_reason: Array  # [B] int32: continuous_batching.STOP or LENGTH
  slot_steps: Array  # int32: decoding steps times slots, active or free


class DecodeInputs(NamedTuple):
  """The constants of the decoding loop."""

  weights: Any  # of the policy
  prompt_cache: Any  # arrays [b, K, P, N]
  requests: DecodeRequests
  stops: Stops


def sample(
  policy: Policy,
  params,
  prompt: Int[Array, 'b P'],
  prompt_length: Int[Array, 'b'],
  key: Key[Array, 'B'],
  *,
  sampling: SamplingParams,
  stops: Stops,
  max_new_tokens: int,
  group_size: int = 1,
  max_num_seqs: int | None = None,
  shards: int = 1,
) -> Rollout:
  """Samples a response to each row, up to a stop or its max_new_tokens.

  Compile it with `jax.jit` over everything but the policy and the static
  arguments: sampling settings, stops and keys are arrays, so other values need
  no new compilation. A prompt is prefilled once for its group, without the
  vocabulary head. The cache is updated in place and grows with the longest
  response.

  A row's tokens depend on its prompt, its key and the parameters, not on its
  neighbours or slot: the key of token t is `fold_in(key[b], t)`.

  Args:
    policy: what is sampled from.
    params: of the policy.
    prompt: [b, P] token ids, right-padded.
    prompt_length: [b], 1 to P.
    key: [B] one typed key per row, B = b * group_size; row i * group_size + g
      responds to prompt i.
    sampling: settings per row, [B]; its max_new_tokens is at most T.
    stops: what ends a response.
    max_new_tokens: static; most tokens of any response, T.
    group_size: static; responses per prompt.
    max_num_seqs: static; rows decoded at a time, a multiple of shards. With
      fewer than B, complete rows are replaced while the others continue.
      Default: B.
    shards: static; parts of the batch that are on different devices.

  Returns:
    A `Rollout` of B rows. `logp` is what `score` computes for the same tokens,
    up to rounding (with int8, for the rounded model).
  """
  rows = len(prompt) * group_size
  slots = rows if max_num_seqs is None else min(max_num_seqs, rows)
  shape = DecodeShape(
    rows // shards, slots // shards, shards, group_size, max_new_tokens
  )
  lengths = cache_lengths(prompt.shape[1], max_new_tokens)
  inputs, state = prefill(
    policy,
    shape,
    params,
    prompt,
    prompt_length,
    key,
    sampling=sampling,
    stops=stops,
    cache_length=lengths[0],
  )
  for length in lengths:
    state = state._replace(cache=_grow(state.cache, length))
    state = _decode(policy, shape, inputs, state, length)
  each_row = partial(jnp.repeat, repeats=group_size, axis=0)
  return Rollout(
    each_row(prompt),
    each_row(prompt_length),
    *batching.collect(shape, state),
    state.steps * slots,
  )


def prefill(
  policy: Policy,
  shape: DecodeShape,
  params,
  prompt,
  prompt_length,
  key,
  *,
  sampling: SamplingParams,
  stops: Stops,
  cache_length: int,
) -> tuple[DecodeInputs, DecodeState]:
  """The start of `sample`: the loop's constants, and its state with full slots.

  Args as those of `sample`; `shape` and `cache_length`, the initial length of
  the cache, are static.
  """
  weights = policy.prepare(params)
  # The loop begins with the last token of the prompt, which is read again.
  token = jnp.take_along_axis(prompt, prompt_length[:, None] - 1, axis=1)[:, 0]
  each_row = partial(jnp.repeat, repeats=shape.group_size, axis=0)
  requests = DecodeRequests(
    each_row(token), each_row(prompt_length - 1), key, sampling
  )
  inputs = DecodeInputs(
    weights, policy.prefill(weights, prompt), requests, stops
  )
  cache = policy.init_cache(shape.slots * shape.shards, cache_length)
  state = batching.init_state(shape, cache)
  return inputs, batching.insert(
    shape, state, requests, inputs.prompt_cache, shape.slots
  )


def advance(
  policy: Policy, shape: DecodeShape, inputs: DecodeInputs, state: DecodeState
) -> DecodeState:
  """Decodes one token in every active slot."""
  slots = state.slots
  requests = batching.slot_requests(shape, state, inputs.requests)
  logits, logp, cache = policy.step(
    inputs.weights, state.cache, slots.token, slots.position
  )
  keys = jax.vmap(jax.random.fold_in)(requests.key, slots.responses.length)
  sampled = sample_next(logits, logp, keys, requests.sampling)
  stop_state, stopped = step(inputs.stops, slots.stop_state, sampled.token)
  slots = slots._replace(stop_state=stop_state)
  slots = batching.append(
    slots, sampled, stopped, requests.sampling.max_new_tokens
  )
  return state._replace(slots=slots, cache=cache, steps=state.steps + 1)


def _decode(policy, shape, inputs, state, length) -> DecodeState:
  """Decodes until all rows are complete or one needs a longer cache."""
  proceed = partial(advance, policy, shape, inputs)

  def fits(state):
    position = jnp.where(state.slots.active, state.slots.position, 0)
    return jnp.max(position) < length

  def busy(state):
    full = ~batching.can_insert(shape, state)
    return jnp.any(state.slots.active) & full & fits(state)

  def unfinished(state):
    return batching.unfinished(shape, state) & fits(state)

  def refill(state):
    state = lax.while_loop(busy, proceed, state)
    return batching.insert(
      shape, state, inputs.requests, inputs.prompt_cache, shape.insert_count
    )

  body = proceed if shape.slots == shape.rows else refill
  return lax.while_loop(unfinished, body, state)


def cache_lengths(prompt_tokens: int, max_new_tokens: int) -> list[int]:
  """Lengths of the cache, from the first token to the last.

  Attention reads the whole cache. Each length compiles the loop once more, so
  there are few.
  """
  parts = (1,) if max_new_tokens <= 128 else (4, 2, 1)
  return [prompt_tokens + -(-max_new_tokens // part) for part in parts]


def _grow(cache, length: int):
  """The cache with room for more tokens."""
  more = length - jax.tree.leaves(cache)[0].shape[2]
  return jax.tree.map(
    lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, more), (0, 0))), cache
  )
