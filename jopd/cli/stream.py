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
from jopd.rollout import continuous_batching as batching
from jopd.rollout.continuous_batching import DecodeShape
from jopd.rollout.decode import Policy
from jopd.rollout.sampler import advance, prefill
from jopd.rollout.sampling import make_sampling_params
from jopd.rollout.stop_criteria import Stops


class Written(NamedTuple):
  """What is there of the answers, on the host."""

  response: np.ndarray  # [B, T] int32
  length: np.ndarray  # [B] int32; 0 for a row that waits for a slot
  end: np.ndarray  # [B] int32; of a row with a length, 0 while it goes on


def make_stream(
  policy: Policy,
  mesh: jax.sharding.Mesh,
  *,
  max_new_tokens: int,
  group_size: int = 1,
  max_num_seqs: int | None = None,
  name: str = 'rollout',
) -> Callable[..., Iterator[Written]]:
  """A function from prompts to what has been answered, after every token.

  For a person who reads along: each token is a call of its own, and the cache
  has room for the longest answer from the beginning. `make_generate` is for
  everything else; it gives the same tokens.

  Args:
    policy: what is sampled from.
    mesh: where its parameters lie; each device does all of the work.
    max_new_tokens: most tokens of an answer, T.
    group_size: answers per prompt.
    max_num_seqs: rows decoded at a time. Default: all.
    name: of the two programs, in messages.

  Returns:
    `stream(params, prompt [b, P], prompt_length [b], key, *, stops,
    **settings)`, an iterator of `Written`; the last one has every answer whole.
    `stops` are of `make_stops`, and `settings` of
    `make_sampling_params`, whose ValueError comes with the first token.
  """

  def shape_of(rows: int) -> DecodeShape:
    slots = min(max_num_seqs or rows, rows)
    return DecodeShape(rows, slots, 1, group_size, max_new_tokens)

  def begin(params, prompt, prompt_length, key, sampling, stops):
    shape = shape_of(len(prompt) * group_size)
    row_keys = jax.vmap(jax.random.fold_in, (None, 0))
    return prefill(
      policy,
      shape,
      params,
      prompt,
      prompt_length,
      row_keys(key, jnp.arange(shape.rows)),
      sampling=sampling,
      stops=stops,
      cache_length=prompt.shape[1] + max_new_tokens,
    )

  def proceed(work, state):
    shape = shape_of(len(work.requests.token))
    state = advance(policy, shape, work, state)
    if shape.slots < shape.rows:
      state = lax.cond(
        batching.can_insert(shape, state),
        lambda s: batching.insert(
          shape, s, work.requests, work.prompt_cache, shape.insert_count
        ),
        lambda s: s,
        state,
      )
    done = batching.collect(shape, state)
    written = Written(done.response, done.length, done.end_reason)
    return state, written, batching.unfinished(shape, state)

  everywhere = sharding.replicated(mesh)
  first = Program(f'{name}: prompt', begin, out_shardings=everywhere)
  then = Program(
    f'{name}: token', proceed, donate_argnums=1, out_shardings=everywhere
  )

  def stream(
    params, prompt, prompt_length, key, *, stops: Stops, **settings
  ) -> Iterator[Written]:
    sampling = make_sampling_params(
      len(prompt) * group_size, max_new_tokens=max_new_tokens, **settings
    )
    inputs = prompt, prompt_length, key, sampling, stops
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
