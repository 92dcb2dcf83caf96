"""Continuous batching: a slot whose response is complete takes the next row.

B rows are answered in C slots. Everything is an array and runs inside `jit`.
Where the batch is divided over devices, each part of it (a shard) has its own
slots and its own queue, so that no row moves between devices.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jopd.rollout.sampling import SampledToken, SamplingParams

STOP, LENGTH = 1, 2
"""End reasons: a stop token or stop string; max_new_tokens."""


class DecodeRequests(NamedTuple):
  """What is decoded for each row; [B]."""

  token: Array  # int32, the last token of the prompt
  position: Array  # int32, its position
  key: Array  # random key of the row
  sampling: SamplingParams


class Responses(NamedTuple):
  """Responses; [B], or [C] while they are being decoded."""

  response: Array  # [B, T] int32
  length: Array  # [B] int32
  logp: Array  # [B, T]
  sampler_logp: Array  # [B, T]
  end_reason: Array  # [B] int32; 0 while the response is incomplete


class Slots(NamedTuple):
  """The rows that are being decoded; [C]."""

  row: Array  # int32, index among the rows of the shard
  active: Array  # bool; a slot that is not active is free
  token: Array  # int32, the token that the model reads next
  position: Array  # int32, its position
  stop_state: Array  # int32, state of the search for stop strings
  responses: Responses


class DecodeState(NamedTuple):
  """The carry of the decoding loop."""

  slots: Slots
  cache: Any  # of the policy; arrays with a leading axis of C
  finished: Responses  # [B]
  next_row: Array  # [shards] int32, the first row without a slot
  steps: Array  # int32, decoding steps so far


class DecodeShape(NamedTuple):
  """The static sizes of a rollout."""

  rows: int  # of a shard
  slots: int  # of a shard
  shards: int
  group_size: int  # rows that share a prompt
  max_new_tokens: int

  @property
  def insert_count(self) -> int:
    """Rows that are inserted together, since an insertion has a cost."""
    return max(1, self.slots // 16)

  def map_shards(self, function: Callable, *args):
    """function(*args) of every shard's part of arrays [shards * n, ...]."""
    split = lambda x: x.reshape(self.shards, -1, *x.shape[1:])
    join = lambda x: x.reshape(-1, *x.shape[2:])
    return jax.tree.map(join, jax.vmap(function)(*jax.tree.map(split, args)))


def init_state(shape: DecodeShape, cache) -> DecodeState:
  """Every slot free, no row started. The cache has C rows."""
  zeros = jnp.zeros(shape.slots * shape.shards, jnp.int32)
  slots = Slots(
    row=zeros + shape.rows,
    active=zeros > 0,
    token=zeros,
    position=zeros,
    stop_state=zeros,
    responses=_empty(len(zeros), shape.max_new_tokens),
  )
  return DecodeState(
    slots=slots,
    cache=cache,
    finished=_empty(shape.rows * shape.shards, shape.max_new_tokens),
    next_row=jnp.zeros(shape.shards, jnp.int32),
    steps=jnp.int32(0),
  )


def insert(
  shape: DecodeShape,
  state: DecodeState,
  requests: DecodeRequests,
  prompt_cache,
  count: int,
) -> DecodeState:
  """Stores complete responses and puts waiting rows into free slots.

  Args:
    shape: static sizes.
    state: before.
    requests: of all rows.
    prompt_cache: of the prompts; arrays [b, K, P, N].
    count: static; the most slots of a shard that are filled.
  """

  def insert_shard(slots, cache, finished, next_row, requests, prompt_cache):
    index = jnp.argsort(slots.active)[:count]  # free slots come first
    free = ~slots.active[index]
    old_row = jnp.where(free, slots.row[index], shape.rows)
    old = jax.tree.map(lambda x: x[index], slots.responses)
    finished = _scatter(finished, old_row, old)
    row = next_row + jnp.arange(count)
    filled = free & (row < shape.rows)
    row = jnp.minimum(row, shape.rows - 1)
    index = jnp.where(filled, index, shape.slots)
    prompt = row // shape.group_size

    def copy_prompt(old, prompts):
      width = prompts.shape[2]
      return old.at[index, :, :width].set(prompts[prompt], mode='drop')

    new = Slots(
      row=row,
      active=filled,
      token=requests.token[row],
      position=requests.position[row],
      stop_state=jnp.zeros_like(row),
      responses=_empty(count, shape.max_new_tokens),
    )
    slots = _scatter(slots, index, new)
    cache = jax.tree.map(copy_prompt, cache, prompt_cache)
    return slots, cache, finished, next_row + jnp.sum(filled)

  slots, cache, finished, next_row = shape.map_shards(
    insert_shard,
    *(state.slots, state.cache, state.finished, state.next_row),
    *(requests, prompt_cache),
  )
  return state._replace(
    slots=slots, cache=cache, finished=finished, next_row=next_row
  )


def collect(shape: DecodeShape, state: DecodeState) -> Responses:
  """The responses of all rows, with those that are still in a slot."""
  put = lambda finished, slots: _scatter(finished, slots.row, slots.responses)
  return shape.map_shards(put, state.finished, state.slots)


def can_insert(shape: DecodeShape, state: DecodeState) -> Array:
  """Whether a shard has free slots for `insert_count` rows, or all the rest."""
  free = jnp.sum(~state.slots.active.reshape(shape.shards, -1), axis=1)
  waiting = shape.rows - state.next_row
  enough = free >= jnp.minimum(shape.insert_count, waiting)
  return jnp.any((waiting > 0) & enough)


def unfinished(shape: DecodeShape, state: DecodeState) -> Array:
  """Whether some row is being decoded or has no slot yet."""
  return jnp.any(state.slots.active) | jnp.any(state.next_row < shape.rows)


def slot_requests(
  shape: DecodeShape, state: DecodeState, requests: DecodeRequests
) -> DecodeRequests:
  """The requests of the rows in the slots; [C]."""
  take = lambda row, x: jax.tree.map(lambda x: x[row], x)
  # Free slots get the request of some row. Their results are dropped.
  row = jnp.minimum(state.slots.row, shape.rows - 1)
  return shape.map_shards(take, row, requests)


def append(
  slots: Slots, sampled: SampledToken, stopped: Array, max_new_tokens: Array
) -> Slots:
  """Adds a token to every active slot, and frees those that are complete.

  Args:
    slots: before.
    sampled: [C] tokens.
    stopped: [C] bool, whether the token completes the response.
    max_new_tokens: [C] of each row.
  """
  active, responses = slots.active, slots.responses
  # In a free slot the column is beyond the last one, and the write dropped.
  column = jnp.where(active, responses.length, responses.response.shape[1])
  put = jax.vmap(lambda row, at, x: row.at[at].set(x, mode='drop'))
  length = responses.length + active
  end_reason = jnp.where(length >= max_new_tokens, LENGTH, 0)
  end_reason = jnp.where(stopped, STOP, end_reason)
  end_reason = jnp.where(active, end_reason, responses.end_reason)
  return slots._replace(
    active=active & (end_reason == 0),
    token=jnp.where(active, sampled.token, slots.token),
    position=slots.position + active,
    responses=Responses(
      put(responses.response, column, sampled.token),
      length,
      put(responses.logp, column, sampled.logp),
      put(responses.sampler_logp, column, sampled.sampler_logp),
      end_reason,
    ),
  )


def _empty(rows: int, tokens: int) -> Responses:
  """Responses of no tokens."""
  logps, ids = jnp.zeros((rows, tokens)), jnp.zeros(rows, jnp.int32)
  return Responses(logps.astype(jnp.int32), ids, logps, logps, ids)


def _scatter(into, index, values):
  """values[i] at row index[i] of each array; an index beyond is dropped."""
  put = lambda x, new: x.at[index].set(new, mode='drop')
  return jax.tree.map(put, into, values)
