"""The compiled sampler: prefill, then a loop over response tokens."""

from functools import partial
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Int, Key

from jopd.models.api import KVCache, Model
from jopd.models.int8 import dequantize
from jopd.rollout import continuous_batching as queue
from jopd.rollout.continuous_batching import DecodeRequests, Plan, State
from jopd.rollout.decode import (
  MixingTeacher,
  Weights,
  choose,
  decode_logits,
  prepare_params,
  voices,
)
from jopd.rollout.sampling import SamplingParams
from jopd.rollout.stop_criteria import Stops, step


class Rollout(NamedTuple):
  """Prompts and what a policy answered; right-padded, lengths tell."""

  prompt: Array  # [B, P] int32
  prompt_length: Array  # [B] int32
  response: Array  # [B, T] int32, 0 beyond the length
  response_length: Array  # [B] int32, the stop token counts
  logp: Array  # [B, T] of the raw model (temperature 1, unfiltered), nats
  sampler_logp: Array  # [B, T] of the distribution that was sampled, nats
  end: Array  # [B] int32: slots.STOP, LENGTH or BUDGET
  slot_steps: Array  # int32: decoding steps times slots, busy or idle


class DecodeInputs(NamedTuple):
  """What the loop reads at every token and never changes."""

  weights: tuple[Weights, ...]  # of the model, and of the second
  store: tuple[KVCache, ...]  # of the prompts, of each; [b, K, P, N]
  requests: DecodeRequests
  stops: Stops
  budget: Array | None


def sample(
  model: Model,
  params,
  prompt: Int[Array, 'b P'],
  prompt_length: Int[Array, 'b'],
  key: Key[Array, 'B'],
  *,
  how: SamplingParams,
  stops: Stops,
  limit: Int[Array, 'B'],
  max_new_tokens: int,
  group_size: int = 1,
  slots: int | None = None,
  shards: int = 1,
  budget: Int[Array, ''] | None = None,
  vocab_size: int | None = None,
  dtype: DTypeLike | None = None,
  int8: bool = False,
  second: MixingTeacher | None = None,
) -> Rollout:
  """Samples responses to each prompt, each until a stop or its limit.

  One program per shape: compile it with `jax.jit` over everything but `model`
  and the static arguments. Sampling settings, stop ids, limits and keys are
  arrays, so changing them compiles nothing. A prompt is prefilled once for its
  whole group, and without the vocabulary head. The cache is carried through the
  loop in place; it grows as the longest response does.

  With fewer slots than rows, a slot whose row has ended takes the next one
  while the others go on, so that a few long responses do not idle the batch.

  A row's tokens depend on its prompt, its key and the parameters, not on its
  neighbours nor on the slots: the key of token t is `fold_in(key[b], t)`.

  Args:
    model: whose `apply` runs with a cache; its `head` gives the logits.
    params: its parameters; with a second model a pair, those of it after them.
    prompt: [b, P] token ids, right-padded.
    prompt_length: [b] real tokens, at least 1 and at most P.
    key: [B] one typed key per row, B = b * group_size; row i * group_size + g
      answers prompt i.
    how: sampling settings per row, [B].
    stops: what ends a response.
    limit: [B] most tokens of each response, 1 to max_new_tokens.
    max_new_tokens: static; most tokens of any response, T.
    group_size: static; responses per prompt.
    slots: static; rows decoded at a time, a multiple of shards. Default: all.
    shards: static; parts of the batch that lie on devices of their own. Each
      has its own slots and its own queue.
    budget: most tokens of all responses together, to within one per slot. Rows
      that it cuts, or leaves empty, end with BUDGET; which, depends on slots.
    vocab_size: static; ids from here on are padding of the head, never picked.
    dtype: static; what the computation runs in. Default: that of the params.
    int8: static; round the matrices to eight bits, see `models.int8`.
    second: static; a model of the same vocabulary that reads the same tokens.
      What `how` says is done to their blend.

  Returns:
    A `Rollout` of B rows. `logp` is what `score` computes for the same tokens,
    up to rounding; with int8, that of another model, which was sampled. With a
    second model it is still that of the first, and `sampler_logp` the blend's.
  """
  rows = len(prompt) * group_size
  slots = rows if slots is None else min(slots, rows)
  plan = Plan(
    rows // shards, slots // shards, shards, group_size, max_new_tokens
  )
  sizes = cache_sizes(prompt.shape[1], max_new_tokens)
  work, state = prefill(
    model,
    plan,
    params,
    prompt,
    prompt_length,
    key,
    how=how,
    stops=stops,
    limit=limit,
    cache_size=sizes[0],
    budget=budget,
    vocab_size=vocab_size,
    dtype=dtype,
    int8=int8,
    second=second,
  )
  for size in sizes:
    state = state._replace(cache=_grow(state.cache, size))
    state = _serve(model, plan, work, state, size, second)
  return Rollout(
    _each(prompt, group_size),
    _each(prompt_length, group_size),
    *queue.collect(plan, state),
    state.steps * slots,
  )


def prefill(
  model: Model,
  plan: Plan,
  params,
  prompt,
  prompt_length,
  key,
  *,
  how: SamplingParams,
  stops: Stops,
  limit,
  cache_size: int,
  budget=None,
  vocab_size: int | None = None,
  dtype: DTypeLike | None = None,
  int8: bool = False,
  second: MixingTeacher | None = None,
) -> tuple[DecodeInputs, State]:
  """What the loop of `sample` begins with; the arguments are those of it.

  Args:
    plan: static.
    cache_size: static; slots of the cache to begin with.
  """
  models = voices(model, second)
  params = (params,) if second is None else params
  dtype = dtype or model.head(params[0]).dtype
  each = zip(models, params, strict=True)
  weights = tuple(
    prepare_params(m, p, vocab_size, dtype, int8) for m, p in each
  )
  store = tuple(
    m.apply(
      dequantize(w.params, dtype),
      prompt,
      None,
      m.init_cache(*prompt.shape, dtype),
    )[1]
    for m, w in zip(models, weights, strict=True)
  )
  requests = _requests(prompt, prompt_length, key, how, limit, plan.group_size)
  work = DecodeInputs(weights, store, requests, stops, budget)
  rows = plan.slots * plan.shards
  cache = tuple(m.init_cache(rows, cache_size, dtype) for m in models)
  state = queue.begin(plan, requests, cache)
  return work, queue.admit(plan, state, requests, store, plan.slots)


def advance(
  model: Model,
  plan: Plan,
  work: DecodeInputs,
  state: State,
  second: MixingTeacher | None = None,
) -> State:
  """One token more in every slot that is live."""
  slots, asked = state.slots, queue.asked(plan, state, work.requests)
  read = zip(voices(model, second), work.weights, state.cache, strict=True)
  logits, cache = zip(
    *(decode_logits(*one, slots) for one in read), strict=True
  )
  keys = jax.vmap(jax.random.fold_in)(asked.key, slots.answer.length)
  picked = choose(logits, keys, asked.how, second)
  text, stopped = step(work.stops, slots.text, picked.token)
  spent = state.spent + jnp.sum(slots.live)
  exhausted = jnp.bool_(False) if work.budget is None else spent >= work.budget
  slots = slots._replace(text=text)
  slots = queue.write(slots, picked, stopped, asked.limit, exhausted)
  return state._replace(
    slots=slots,
    cache=cache,
    # With nothing left to spend nobody is admitted any more.
    waiting=jnp.where(exhausted, plan.rows, state.waiting),
    spent=spent,
    steps=state.steps + 1,
  )


def _serve(model, plan, work, state, size, second) -> State:
  """Decodes until all is answered, or a row needs more than `size` slots."""
  proceed = partial(advance, model, plan, work, second=second)

  def fits(state):
    position = jnp.where(state.slots.live, state.slots.position, 0)
    return jnp.max(position) < size

  def busy(state):
    full = ~queue.ready(plan, state)
    return jnp.any(state.slots.live) & full & fits(state)

  def unfinished(state):
    return queue.unfinished(plan, state) & fits(state)

  if plan.slots == plan.rows:  # nobody waits
    return lax.while_loop(unfinished, proceed, state)
  return lax.while_loop(
    unfinished,
    lambda state: queue.admit(
      plan,
      lax.while_loop(busy, proceed, state),
      work.requests,
      work.store,
      plan.few,
    ),
    state,
  )


def _requests(
  prompt, prompt_length, key, how, limit, group_size
) -> DecodeRequests:
  """The loop begins by reading a prompt's last token again."""
  last = jnp.take_along_axis(prompt, prompt_length[:, None] - 1, axis=1)[:, 0]
  return DecodeRequests(
    _each(last, group_size),
    _each(prompt_length - 1, group_size),
    key,
    how,
    limit,
  )


def _each(prompts, group_size: int):
  """[b, ...] -> [B, ...]: what is known of a prompt, for each of its rows."""
  return jnp.repeat(prompts, group_size, axis=0)


def cache_sizes(prompt_slots: int, max_new_tokens: int) -> list[int]:
  """Slots of the cache, from the first token to the last.

  Attention reads all slots that are there. Each size is one more copy of the
  loop to compile, so there are few.
  """
  parts = (1,) if max_new_tokens <= 128 else (4, 2, 1)
  return [prompt_slots + -(-max_new_tokens // part) for part in parts]


def _grow(cache, size: int):
  """The caches with more slots."""
  more = size - jax.tree.leaves(cache)[0].shape[2]
  return jax.tree.map(
    lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, more), (0, 0))), cache
  )
