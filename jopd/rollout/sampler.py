"""The compiled sampler: prefill, then a while loop over response tokens."""

from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from jopd.models.api import KVCache, Model
from jopd.rollout.pick import Picked, Sampling, pick


class Rollout(NamedTuple):
  """Prompts and what a policy answered; right-padded, lengths tell."""

  prompt: Array  # [B, P] int32
  prompt_length: Array  # [B] int32
  response: Array  # [B, T] int32, 0 beyond the length
  response_length: Array  # [B] int32, the stop token counts
  logp: Array  # [B, T] of the raw model (temperature 1, unfiltered), nats
  sampler_logp: Array  # [B, T] of the distribution that was sampled, nats
  stopped: Array  # [B] bool; False where the limit ended the row


class _State(NamedTuple):
  """What the loop carries. Columns of the outputs before `step` are final."""

  step: Array  # response tokens emitted so far
  token: Array  # [B] the last of them
  done: Array  # [B] bool
  cache: KVCache  # holds the prompt and all but the last token
  response: Array  # [B, T] and so on, as in Rollout
  response_length: Array
  logp: Array
  sampler_logp: Array
  stopped: Array


def sample(
  model: Model,
  params,
  prompt: Int[Array, 'B P'],
  prompt_length: Int[Array, 'B'],
  key: Key[Array, 'B'],
  *,
  how: Sampling,
  stop_ids: Int[Array, 'S'],
  limit: Int[Array, 'B'],
  max_new_tokens: int,
  vocab_size: int | None = None,
) -> Rollout:
  """Samples a response to each prompt until a stop token or the row's limit.

  One program per shape: compile it with `jax.jit` over everything but `model`
  and `max_new_tokens`. Temperature, filters, stop ids, limits and keys are
  arrays, so changing them compiles nothing. The vocabulary head runs on the
  last prompt position only; the loop ends as soon as every row is done. The
  cache is made inside the program and carried through the loop in place.

  A row's tokens depend on its prompt, its key and the parameters, not on its
  neighbours: the key of token t is `fold_in(key[b], t)`.

  Args:
    model: whose `apply` runs with a cache; its `head` gives the logits.
    params: its parameters; the computation runs in their dtype.
    prompt: [B, P] token ids, right-padded.
    prompt_length: [B] real tokens, at least 1 and at most P.
    key: [B] one typed key per row.
    how: sampling settings per row.
    stop_ids: [S] token ids that end a response; pad with -1.
    limit: [B] most tokens of each response, 1 to max_new_tokens.
    max_new_tokens: static; slots of the response, T.
    vocab_size: static; ids from here on are padding of the head, never picked.

  Returns:
    A `Rollout`. `logp` is what `score` computes for the same tokens, up to
    rounding.
  """
  batch, slots = prompt.shape
  # Sliced per layer here, once, and not at every token of the loop.
  params = model.unstack(params)
  head = model.head(params)[:vocab_size]
  cache = model.init_cache(batch, slots + max_new_tokens, head.dtype)
  hidden, cache = model.apply(params, prompt, None, cache)
  last = (prompt_length - 1)[:, None, None]
  hidden = jnp.take_along_axis(hidden, last, axis=1)[:, 0]

  def emit(state: _State, hidden) -> _State:
    logits = jnp.einsum(
      'bd,vd->bv', hidden, head, preferred_element_type=jnp.float32
    )
    keys = jax.vmap(jax.random.fold_in, (0, None))(key, state.step)
    return _write(state, pick(logits, keys, how), stop_ids, limit)

  def advance(state: _State) -> _State:
    position = prompt_length + state.step - 1
    hidden, cache = model.apply(
      params, state.token[:, None], position, state.cache
    )
    return emit(state._replace(cache=cache), hidden[:, 0])

  state = lax.while_loop(
    lambda s: (s.step < max_new_tokens) & ~jnp.all(s.done),
    advance,
    emit(_empty(batch, max_new_tokens, cache), hidden),
  )
  return Rollout(
    prompt,
    prompt_length,
    state.response,
    state.response_length,
    state.logp,
    state.sampler_logp,
    state.stopped,
  )


def _empty(batch: int, slots: int, cache: KVCache) -> _State:
  """The state before the first token."""
  ids = jnp.zeros(batch, jnp.int32)
  flags = jnp.zeros(batch, bool)
  logps = jnp.zeros((batch, slots))
  return _State(
    step=jnp.int32(0),
    token=ids,
    done=flags,
    cache=cache,
    response=logps.astype(jnp.int32),
    response_length=ids,
    logp=logps,
    sampler_logp=logps,
    stopped=flags,
  )


def _write(state: _State, picked: Picked, stop_ids, limit) -> _State:
  """Adds a token to every row that is not done, and says which now are."""
  live = ~state.done
  put = lambda into, value: lax.dynamic_update_slice_in_dim(
    into, jnp.where(live, value, 0)[:, None], state.step, axis=1
  )
  stop = live & jnp.any(picked.token[:, None] == stop_ids[None, :], axis=1)
  return state._replace(
    step=state.step + 1,
    token=picked.token,
    done=state.done | stop | (state.step + 1 >= limit),
    response=put(state.response, picked.token),
    response_length=state.response_length + live,
    logp=put(state.logp, picked.logp),
    sampler_logp=put(state.sampler_logp, picked.sampler_logp),
    stopped=state.stopped | stop,
  )
