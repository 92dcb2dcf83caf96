"""Rollouts from host arrays: placement on the mesh around `sample`."""

from collections.abc import Callable
import contextlib
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
from jopd.rollout.decode import Policy, make_policy
from jopd.rollout.sampler import Rollout, sample
from jopd.rollout.sampling import make_sampling_params
from jopd.rollout.stop_criteria import Stops


def make_generate(
  policy: Policy | Model,
  mesh: jax.sharding.Mesh,
  *,
  max_new_tokens: int,
  group_size: int = 1,
  max_num_seqs: int | None = None,
  num_length_buckets: int = 1,
  name: str = 'rollout',
  clock: Callable = lambda phase: contextlib.nullcontext(),
):
  """A function from prompts on the host to a rollout on the mesh.

  Args:
    policy: what is sampled from; a model stands for `make_policy(model)`.
    mesh: the batch is divided over its data axes.
    max_new_tokens: most tokens of any response, T.
    group_size: responses per prompt.
    max_num_seqs: rows decoded at a time, over the whole mesh; see `sample`.
    num_length_buckets: lengths that P is cut to where prompts are short; see
      `compilation.bucket`.
    name: of the compiled program, in messages.
    clock: (phase) -> context manager, entered for 'compile'.

  Returns:
    `generate(params, prompt [b, P], prompt_length [b], key, *, stops,
    max_new_tokens=None, first_row=0, **settings) -> Rollout`. The prompts are
    those of this process. `key` is one key, the same in all processes: row i of
    the global batch gets `fold_in(key, first_row + i)`. `max_new_tokens` is a
    number or [b * group_size]; `settings` are those of `make_sampling_params`.
    The attribute `program` counts compilations.

  Raises:
    ValueError: max_num_seqs cannot be divided over the mesh; and from
      `generate`, the rows cannot, or a setting is out of range.
  """
  if isinstance(policy, Model):
    policy = make_policy(policy)
  rows, replicated = sharding.batch_sharding(mesh), sharding.replicated(mesh)
  shards = sharding.batch_parts(mesh)
  check_max_num_seqs(mesh, max_num_seqs)
  most = max_new_tokens

  def run(params, prompt, prompt_length, key, first_row, sampling, stops):
    count = len(sampling.temperature)
    row_key = partial(jax.random.fold_in, jax.random.wrap_key_data(key))
    return sample(
      policy,
      params,
      prompt,
      prompt_length,
      jax.vmap(row_key)(first_row + jnp.arange(count)),
      sampling=sampling,
      stops=stops,
      max_new_tokens=most,
      group_size=count // len(prompt),
      max_num_seqs=max_num_seqs,
      shards=shards,
    )

  fields = dict.fromkeys(Rollout._fields, rows) | {'slot_steps': replicated}
  program = Program(name, run, clock=clock, out_shardings=Rollout(**fields))

  def generate(
    params,
    prompt,
    prompt_length,
    key,
    *,
    stops: Stops,
    max_new_tokens=None,
    first_row: int = 0,
    **settings,
  ) -> Rollout:
    count = len(prompt) * group_size
    max_new_tokens = most if max_new_tokens is None else max_new_tokens
    sharding.check_batch(mesh, count * jax.process_count())
    _check_range('max_new_tokens', max_new_tokens, most)
    _check_range('prompt_length', prompt_length, prompt.shape[1])
    if num_length_buckets > 1:
      longest = sharding.largest(prompt_length)
      size = bucket(longest, prompt.shape[1], num_length_buckets)
      prompt = prompt[:, :size]
    # With fewer prompts than shards, several shards prefill the same prompt.
    copies = shards // math.gcd(len(prompt) * jax.process_count(), shards)
    prompts = [np.repeat(x, copies, axis=0) for x in (prompt, prompt_length)]
    sampling = make_sampling_params(
      count, max_new_tokens=max_new_tokens, **settings
    )
    return program(
      params,
      *sharding.make_global_array(prompts, rows),
      sharding.make_global_array(jax.random.key_data(key), replicated),
      sharding.make_global_array(np.int32(first_row), replicated),
      sharding.make_global_array(jax.tree.map(np.asarray, sampling), rows),
      sharding.make_global_array(stops, replicated),
    )

  generate.program = program
  return generate


def check_max_num_seqs(mesh: jax.sharding.Mesh, max_num_seqs: int | None):
  """Raises ValueError when the slots cannot be divided over the mesh."""
  parts = sharding.batch_parts(mesh)
  if max_num_seqs is not None and (max_num_seqs < 1 or max_num_seqs % parts):
    raise ValueError(
      f'max_num_seqs must be a multiple of the {parts} parts of a batch on this'
      f' mesh, got {max_num_seqs}'
    )


def _check_range(name: str, values, most: int) -> None:
  if np.min(values) < 1 or np.max(values) > most:
    raise ValueError(f'{name} must be in [1, {most}], got {values}')


def responses(tokenizer, rollout, messages) -> list[Response]:
  """The responses as reward functions read them.

  Args:
    tokenizer: of transformers.
    rollout: as in `decode`, with its `end_reason` [B].
    messages: B lists of chat messages, the prompts.
  """
  return [
    Response(text, row[:n], prompt, 'stop' if end == STOP else 'length')
    for text, row, n, prompt, end in zip(
      decode(tokenizer, rollout),
      rollout.response,
      rollout.response_length,
      messages,
      rollout.end_reason,
      strict=True,
    )
  ]


def decode(tokenizer, rollout) -> list[str]:
  """The text of each response, without special tokens.

  Args:
    tokenizer: of transformers.
    rollout: on the host, with `response` [B, T] and `response_length` [B].
  """
  return tokenizer.batch_decode(
    [
      row[:n].tolist()
      for row, n in zip(rollout.response, rollout.response_length, strict=True)
    ],
    skip_special_tokens=True,
  )
