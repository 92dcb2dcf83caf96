"""Rollouts from host arrays: placement on the mesh around `sample`."""

from functools import partial
import math

import jax
import jax.numpy as jnp
import numpy as np

from jopd import sharding
from jopd.compilation import Program, bucket
from jopd.models.api import Model
from jopd.rewards import Response
from jopd.rollout.continuous_batching import STOP
from jopd.rollout.decode import MixingTeacher
from jopd.rollout.sampler import Rollout, sample
from jopd.rollout.sampling import sampling
from jopd.rollout.stop_criteria import Stops


def make_generate(
  model: Model,
  mesh: jax.sharding.Mesh,
  *,
  max_new_tokens: int,
  group_size: int = 1,
  slots: int | None = None,
  vocab_size: int | None = None,
  compute_dtype=jnp.float32,
  int8: bool = False,
  second: MixingTeacher | None = None,
  buckets: int = 1,
  name: str = 'rollout',
  **program_options,
):
  """A function from prompts on the host to a rollout on the mesh.

  Args:
    model: the policy.
    mesh: the batch is split over its data axes.
    max_new_tokens: slots of the response.
    group_size: responses per prompt.
    slots: rows decoded at a time, over the whole mesh; see `sample`.
    vocab_size: ids from here on are padding of the head, never picked.
    compute_dtype: the policy's parameters are cast to it, once per call.
    int8: whether its matrices are rounded to eight bits, once per call.
    second: a model that has a say in every token, computed alike; then `params`
      is a pair, its own after the policy's.
    buckets: sizes that P is cut to where prompts are short; see `bucket`.
    name: of the program, in messages.
    program_options: of `Program`: say, clock.

  Returns:
    `generate(params, prompt [b, P], prompt_length [b], key, *, stops,
    limit=None, budget=None, first_row=0, **settings)`: the rows are this
    process's; `key` is one key, the same on each, from which row i of the
    global batch gets `fold_in(key, first_row + i)`; `stops`, of `make_stops`,
    end a response; `limit` is a number or [b * group_size], `budget` a number,
    of all hosts' tokens; `settings` are those of `sampling`. Its attribute
    `program` counts compilations.

  Raises:
    ValueError: slots cannot be divided over the mesh; and from `generate`, the
      rows cannot, or a prompt's length, a limit or a setting is out of range.
  """
  rows, replicated = sharding.batch_sharding(mesh), sharding.replicated(mesh)
  shards = sharding.batch_parts(mesh)
  check_slots(mesh, slots)

  def run(
    params, prompt, prompt_length, key, first_row, how, stops, limit, budget
  ):
    count = len(limit)
    row_key = partial(jax.random.fold_in, jax.random.wrap_key_data(key))
    row_keys = jax.vmap(row_key)(first_row + jnp.arange(count))
    return sample(
      model,
      params,
      prompt,
      prompt_length,
      row_keys,
      how=how,
      stops=stops,
      limit=limit,
      max_new_tokens=max_new_tokens,
      group_size=count // len(prompt),
      slots=slots,
      shards=shards,
      budget=budget,
      vocab_size=vocab_size,
      dtype=compute_dtype,
      int8=int8,
      second=second,
    )

  fields = dict.fromkeys(Rollout._fields, rows) | {'slot_steps': replicated}
  program = Program(
    name, run, out_shardings=Rollout(**fields), **program_options
  )

  def generate(
    params,
    prompt,
    prompt_length,
    key,
    *,
    stops: Stops,
    limit=None,
    budget=None,
    first_row: int = 0,
    **settings,
  ) -> Rollout:
    count = len(prompt) * group_size
    sharding.check_batch(mesh, count * jax.process_count())
    _check_range('prompt_length', prompt_length, prompt.shape[1])
    if buckets > 1:
      longest = sharding.largest(prompt_length)
      prompt = prompt[:, : bucket(longest, prompt.shape[1], buckets)]
    # Fewer prompts than parts of the batch: some parts prefill the same one.
    copies = shards // math.gcd(len(prompt) * jax.process_count(), shards)
    prompt, prompt_length = (
      np.repeat(x, copies, axis=0) for x in (prompt, prompt_length)
    )
    how = sampling(count, **settings)
    budget = np.iinfo(np.int32).max if budget is None else budget
    return program(
      params,
      *sharding.put((prompt, prompt_length), rows),
      sharding.put(jax.random.key_data(key), replicated),
      sharding.put(np.int32(first_row), replicated),
      sharding.put(jax.tree.map(np.asarray, how), rows),
      sharding.put(stops, replicated),
      sharding.put(_limits(limit, max_new_tokens, count), rows),
      sharding.put(np.int32(budget), replicated),
    )

  generate.program = program
  return generate


def check_slots(mesh: jax.sharding.Mesh, slots: int | None) -> None:
  """Raises ValueError when slots cannot be divided evenly over the mesh."""
  parts = sharding.batch_parts(mesh)
  if slots is not None and (slots < 1 or slots % parts):
    raise ValueError(
      f'slots must be a multiple of the {parts} parts that the mesh makes of a'
      f' batch, got {slots}'
    )


def _limits(limit, most: int, count: int) -> np.ndarray:
  """The most tokens of each row."""
  limits = np.asarray(most if limit is None else limit, np.int32)
  _check_range('limit', limits, most)
  return np.broadcast_to(limits, count)


def _check_range(name: str, values, most: int) -> None:
  if np.min(values) < 1 or np.max(values) > most:
    raise ValueError(f'{name} must be in [1, {most}], got {values}')


def responses(tokenizer, rollout, messages) -> list[Response]:
  """The responses as reward functions read them.

  Args:
    tokenizer: of transformers.
    rollout: as in `decode`, with its `end` [B].
    messages: B lists of chat messages, which the model read.
  """
  return [
    Response(text, row[:n], prompt, 'stop' if end == STOP else 'length')
    for text, row, n, prompt, end in zip(
      decode(tokenizer, rollout),
      rollout.response,
      rollout.response_length,
      messages,
      rollout.end,
      strict=True,
    )
  ]


def decode(tokenizer, rollout) -> list[str]:
  """The text of each response, special tokens left out.

  Args:
    tokenizer: of transformers.
    rollout: a `Rollout` on the host, or anything with its `response` [B, T]
      and `response_length` [B].
  """
  return tokenizer.batch_decode(
    [
      row[:n].tolist()
      for row, n in zip(rollout.response, rollout.response_length, strict=True)
    ],
    skip_special_tokens=True,
  )
