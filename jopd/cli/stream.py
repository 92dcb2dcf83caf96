"""Answers while they are written: the sampler, left after every token.

A callback from inside the compiled loop would do the same in fewer lines. But
a program with a callback is never kept in the compilation cache, and as long
as it runs nothing can interrupt it.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from jopd import sharding
from jopd.compilation import Program
from jopd.models.api import Model
from jopd.rollout import continuous_batching as queue
from jopd.rollout.continuous_batching import Plan
from jopd.rollout.sampler import advance, prefill
from jopd.rollout.sampling import sampling
from jopd.rollout.stop_criteria import Stops


class Written(NamedTuple):
  """What is there of the answers, on the host."""

  response: np.ndarray  # [B, T] int32
  length: np.ndarray  # [B] int32; 0 for a row that waits for a slot
  end: np.ndarray  # [B] int32; of a row with a length, 0 while it goes on


def make_stream(
  model: Model,
  mesh: jax.sharding.Mesh,
  *,
  max_new_tokens: int,
  group_size: int = 1,
  slots: int | None = None,
  vocab_size: int | None = None,
  compute_dtype=jnp.float32,
  name: str = 'rollout',
  **program_options,
) -> Callable[..., Iterator[Written]]:
  """A function from prompts to what has been answered, after every token.

  For a person who reads along: each token is a call of its own, and the cache
  has room for the longest answer from the beginning. `make_generate` is for
  everything else; it gives the same tokens.

  Args:
    model: the policy.
    mesh: where its parameters lie; each device does all of the work.
    max_new_tokens: most tokens of an answer, T.
    group_size: answers per prompt.
    slots: rows decoded at a time. Default: all.
    vocab_size: ids from here on are padding of the head, never picked.
    compute_dtype: the policy's parameters are cast to it, once per call.
    name: of the two programs, in messages.
    program_options: of `Program`: say, clock.

  Returns:
    `stream(params, prompt [b, P], prompt_length [b], key, *, stops,
    **settings)`, an iterator of `Written`; the last one has every answer whole.
    `stops` are of `make_stops`, and `settings` those of `sampling`, whose
    ValueError comes with the first token.
  """

  def plan_of(rows: int) -> Plan:
    return Plan(rows, min(slots or rows, rows), 1, group_size, max_new_tokens)

  def begin(params, prompt, prompt_length, key, how, stops):
    plan = plan_of(len(prompt) * group_size)
    row_keys = jax.vmap(jax.random.fold_in, (None, 0))
    return prefill(
      model,
      plan,
      params,
      prompt,
      prompt_length,
      row_keys(key, jnp.arange(plan.rows)),
      how=how,
      stops=stops,
      limit=jnp.full(plan.rows, max_new_tokens),
      cache_size=prompt.shape[1] + max_new_tokens,
      vocab_size=vocab_size,
      dtype=compute_dtype,
    )

  def proceed(work, state):
    plan = plan_of(len(work.requests.limit))
    state = advance(model, plan, work, state)
    if plan.slots < plan.rows:
      state = lax.cond(
        queue.ready(plan, state),
        lambda s: queue.admit(plan, s, work.requests, work.store, plan.few),
        lambda s: s,
        state,
      )
    done = queue.collect(plan, state)
    written = Written(done.response, done.length, done.end)
    return state, written, queue.unfinished(plan, state)

  everywhere = sharding.replicated(mesh)
  program_options |= dict(out_shardings=everywhere)
  first = Program(f'{name}: prompt', begin, **program_options)
  then = Program(f'{name}: token', proceed, donate_argnums=1, **program_options)

  def stream(
    params, prompt, prompt_length, key, *, stops: Stops, **settings
  ) -> Iterator[Written]:
    how = sampling(len(prompt) * group_size, **settings)
    inputs = prompt, prompt_length, key, how, stops
    work, state = first(params, *jax.device_put(inputs, everywhere))
    more = True
    while more:
      state, written, more = then(work, state)
      yield jax.device_get(written)

  return stream


def texts(tokenizer, steps: Iterable[Written]) -> Iterator[str]:
  """The text of each answer in pieces, as far as it is certain.

  The answers follow one another in the order of their rows, a newline after
  each. Bytes that only begin a character wait for the rest of it; special
  tokens are left out. All pieces together are what `decode` gives.

  Args:
    tokenizer: of transformers, one whose text grows at its end as tokens do.
    steps: of `make_stream`.
  """
  row, said = 0, ''
  for response, length, end in steps:
    while row < len(length) and length[row]:
      ids = response[row, : length[row]].tolist()
      text = tokenizer.decode(ids, skip_special_tokens=True)
      # It stands for bytes that are no text, or not yet.
      ready = text if end[row] else text.rstrip('\ufffd')
      yield ready[len(said) :]
      said = ready
      if not end[row]:
        break
      yield '\n'
      row, said = row + 1, ''
