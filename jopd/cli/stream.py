"""Answers while they are written: the sampler, left after every token.

A callback from inside the compiled loop would take fewer lines. But a program
with a callback is never kept in the compilation cache, and nothing can
interrupt it.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax
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
  """Answers so far, on the host."""

  response: np.ndarray  # [B, T] int32
  length: np.ndarray  # [B] int32
  end_reason: np.ndarray  # [B] int32; 0 while an answer is incomplete


def make_stream(
  policy: Policy,
  mesh: jax.sharding.Mesh,
  *,
  max_new_tokens: int,
  group_size: int = 1,
) -> Callable[..., Iterator[Written]]:
  """A function that returns the answers to prompts after every token.

  It samples the same tokens as `make_generate`, more slowly: each token is a
  call of its own, and all rows are decoded at once.

  Args:
    policy: what is sampled from.
    mesh: of its parameters; each device does all of the work.
    max_new_tokens: most tokens of an answer, T.
    group_size: answers per prompt.

  Returns:
    `stream(params, prompt [b, P], prompt_length [b], key, *, stops,
    **settings)`, an iterator of `Written`; the last one has every answer whole.
    `stops` are of `make_stops`, `settings` of `make_sampling_params`.
  """

  def shape_of(rows: int) -> DecodeShape:
    return DecodeShape(rows, rows, 1, group_size, max_new_tokens)

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

  def proceed(inputs, state):
    shape = shape_of(len(inputs.requests.token))
    state = advance(policy, shape, inputs, state)
    done = batching.collect(shape, state)
    written = Written(done.response, done.length, done.end_reason)
    return state, written, batching.unfinished(shape, state)

  everywhere = sharding.replicated(mesh)
  prompt_step = Program('rollout: prompt', begin, out_shardings=everywhere)
  token_step = Program(
    'rollout: token', proceed, donate_argnums=1, out_shardings=everywhere
  )

  def stream(
    params, prompt, prompt_length, key, *, stops: Stops, **settings
  ) -> Iterator[Written]:
    sampling = make_sampling_params(
      len(prompt) * group_size, max_new_tokens=max_new_tokens, **settings
    )
    arrays = prompt, prompt_length, key, sampling, stops
    inputs, state = prompt_step(params, *jax.device_put(arrays, everywhere))
    more = True
    while more:
      state, written, more = token_step(inputs, state)
      yield jax.device_get(written)

  return stream


def texts(tokenizer, steps: Iterable[Written]) -> Iterator[str]:
  """The text of each answer in pieces, as far as it is certain.

  The answers follow one another in the order of their rows, a newline after
  each. An incomplete character waits for its other bytes; special tokens are
  left out. All pieces together are what `decode` gives.

  Args:
    tokenizer: of transformers; its text only grows at the end as tokens do.
    steps: of `make_stream`.
  """
  row, printed = 0, ''
  for response, length, end_reason in steps:
    while row < len(length):
      ids = response[row, : length[row]].tolist()
      text = tokenizer.decode(ids, skip_special_tokens=True)
      # The replacement character stands for bytes that are not yet a character.
      ready = text if end_reason[row] else text.rstrip('\ufffd')
      yield ready[len(printed) :]
      printed = ready
      if not end_reason[row]:
        break
      yield '\n'
      row, printed = row + 1, ''
