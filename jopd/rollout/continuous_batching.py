"""Rows in slots: who is being decoded, who waits, whose answer is done.

There are C slots and B rows to answer. A slot whose row has ended takes the
next one that waits, while the others go on. Everything is an array and runs
inside `jit`. Where the batch lies on several devices, each part of it (a shard)
has its own slots and its own queue, so that no row travels.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jopd.models.api import KVCache
from jopd.rollout.sampling import SampledToken, SamplingParams

STOP, LENGTH, BUDGET = 1, 2, 3
"""How a response ended: a stop token or string, its limit, everybody's."""


class DecodeRequests(NamedTuple):
  """What each row asks for; [B]."""

  token: Array  # int32, the last of the prompt
  position: Array  # int32, where it stands
  key: Array  # the row's random key
  how: SamplingParams
  limit: Array  # int32, most tokens


class Answers(NamedTuple):
  """What was answered; [B], or [C] while it is being written."""

  response: Array  # [B, T] int32
  length: Array  # [B] int32
  logp: Array  # [B, T]
  sampler_logp: Array  # [B, T]
  end: Array  # [B] int32; 0 while it goes on


class Slots(NamedTuple):
  """The rows that are being decoded; [C]."""

  row: Array  # int32, which of its shard's rows
  live: Array  # bool; a slot that is not may be taken
  token: Array  # int32, the one that the model reads next
  position: Array  # int32, where that stands
  text: Array  # int32, state of the search for stop strings
  answer: Answers


class State(NamedTuple):
  """What the loop carries."""

  slots: Slots
  cache: tuple[KVCache, ...]  # of each model, [C, ...]
  done: Answers  # [B]
  waiting: Array  # [shards] int32, the first row that waits
  spent: Array  # int32, tokens of all responses so far
  steps: Array  # int32, decoding steps so far


class Plan(NamedTuple):
  """The sizes of a queue; static."""

  rows: int  # of a shard
  slots: int  # of a shard
  shards: int
  group_size: int  # rows that share a prompt
  max_new_tokens: int

  @property
  def few(self) -> int:
    """How many are admitted together: admitting costs a little."""
    return max(1, self.slots // 16)

  def each_shard(self, function: Callable, *args):
    """function(*args) on every shard's part of arrays [shards * n, ...]."""
    split = lambda x: x.reshape(self.shards, -1, *x.shape[1:])
    join = lambda x: x.reshape(-1, *x.shape[2:])
    return jax.tree.map(join, jax.vmap(function)(*jax.tree.map(split, args)))


def begin(plan: Plan, requests: DecodeRequests, cache: tuple) -> State:
  """Every slot empty, every row waiting. The cache of each model has C rows."""
  ids = jnp.zeros(plan.slots * plan.shards, jnp.int32)
  slots = Slots(
    row=ids + plan.rows,
    live=ids > 0,
    token=ids,
    position=ids,
    text=ids,
    answer=_blank(len(ids), plan.max_new_tokens),
  )
  done = _blank(len(requests.token), plan.max_new_tokens)
  return State(
    slots=slots,
    cache=cache,
    # Of a row that is never taken; every other one is overwritten.
    done=done._replace(end=done.end + BUDGET),
    waiting=jnp.zeros(plan.shards, jnp.int32),
    spent=jnp.int32(0),
    steps=jnp.int32(0),
  )


def admit(
  plan: Plan, state: State, requests: DecodeRequests, store: tuple, count: int
) -> State:
  """Puts ended answers away, and waiting rows in up to `count` slots a shard.

  Args:
    plan: sizes.
    state: before.
    requests: of all rows.
    store: [b, K, P, N] keys and values of the prompts, of each model.
    count: static.
  """
  slots, cache, done, waiting = plan.each_shard(
    lambda *shard: _admit(plan, count, *shard),
    state.slots,
    state.cache,
    state.done,
    state.waiting,
    requests,
    store,
  )
  return state._replace(slots=slots, cache=cache, done=done, waiting=waiting)


def _admit(plan, count, slots, cache, done, waiting, requests, store):
  """`admit` of one shard."""
  chosen = jnp.argsort(slots.live)[:count]  # those that are free come first
  free = ~slots.live[chosen]
  old = jnp.where(free, slots.row[chosen], plan.rows)
  done = _scatter(done, old, jax.tree.map(lambda x: x[chosen], slots.answer))
  new = waiting + jnp.arange(count)
  taken = free & (new < plan.rows)
  new = jnp.minimum(new, plan.rows - 1)
  fresh = Slots(
    row=new,
    live=taken,
    token=requests.token[new],
    position=requests.position[new],
    text=jnp.zeros_like(new),
    answer=_blank(count, plan.max_new_tokens),
  )
  into = jnp.where(taken, chosen, plan.slots)
  prompt = new // plan.group_size

  def copy(old, prompts):
    width = prompts.shape[2]
    return old.at[into, :, :width].set(prompts[prompt], mode='drop')

  return (
    _scatter(slots, into, fresh),
    jax.tree.map(copy, cache, store),
    done,
    waiting + jnp.sum(taken),
  )


def collect(plan: Plan, state: State) -> Answers:
  """The answers of all rows, those that are still in a slot too."""
  put = lambda done, slots: _scatter(done, slots.row, slots.answer)
  return plan.each_shard(put, state.done, state.slots)


def ready(plan: Plan, state: State) -> Array:
  """Whether some shard has a few rows waiting, or all, and slots for them."""
  free = jnp.sum(~state.slots.live.reshape(plan.shards, -1), axis=1)
  left = plan.rows - state.waiting
  return jnp.any((left > 0) & (free >= jnp.minimum(plan.few, left)))


def unfinished(plan: Plan, state: State) -> Array:
  """Whether some row is being answered, or waits."""
  return jnp.any(state.slots.live) | jnp.any(state.waiting < plan.rows)


def asked(plan: Plan, state: State, requests: DecodeRequests) -> DecodeRequests:
  """The requests of the rows in the slots; [C]."""
  take = lambda row, x: jax.tree.map(lambda x: x[row], x)
  # An empty slot reads some row; nobody reads what it makes of it.
  row = jnp.minimum(state.slots.row, plan.rows - 1)
  return plan.each_shard(take, row, requests)


def write(
  slots: Slots,
  picked: SampledToken,
  stopped: Array,
  limit: Array,
  exhausted: Array,
) -> Slots:
  """Adds a token to the answer of every live slot, and ends some.

  Args:
    slots: before.
    picked: [C] tokens.
    stopped: [C] bool, whether a response is complete with it.
    limit: [C] most tokens of the row.
    exhausted: bool, whether no further token may be spent by anybody.
  """
  live, answer = slots.live, slots.answer
  # Of a slot that is not live, a column beyond the last: it is dropped.
  column = jnp.where(live, answer.length, answer.response.shape[1])
  put = jax.vmap(lambda row, at, x: row.at[at].set(x, mode='drop'))
  length = answer.length + live
  end = jnp.where(length >= limit, LENGTH, jnp.where(exhausted, BUDGET, 0))
  end = jnp.where(stopped, STOP, end)
  end = jnp.where(live, end, answer.end)
  return slots._replace(
    live=live & (end == 0),
    token=jnp.where(live, picked.token, slots.token),
    position=slots.position + live,
    answer=Answers(
      put(answer.response, column, picked.token),
      length,
      put(answer.logp, column, picked.logp),
      put(answer.sampler_logp, column, picked.sampler_logp),
      end,
    ),
  )


def _blank(rows: int, tokens: int) -> Answers:
  """Answers of no token."""
  logps, ids = jnp.zeros((rows, tokens)), jnp.zeros(rows, jnp.int32)
  return Answers(logps.astype(jnp.int32), ids, logps, logps, ids)


def _scatter(into, index, values):
  """values[i] at row index[i] of each array; an index beyond is dropped."""
  put = lambda x, new: x.at[index].set(new, mode='drop')
  return jax.tree.map(put, into, values)
