"""Rollouts from host arrays: placement on the mesh around `sample`."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jopd import sharding
from jopd.models.api import Model
from jopd.programs import Program
from jopd.rollout.pick import sampling
from jopd.rollout.sampler import Rollout, sample


def make_generate(
  model: Model,
  mesh: jax.sharding.Mesh,
  *,
  stop_ids: Sequence[int],
  max_new_tokens: int,
  vocab_size: int | None = None,
  compute_dtype=jnp.float32,
  name: str = 'rollout',
  **program_options,
):
  """A function from prompts on the host to a rollout on the mesh.

  Args:
    model: the policy.
    mesh: the batch is split over its data axes.
    stop_ids: tokens that end a response.
    max_new_tokens: slots of the response.
    vocab_size: ids from here on are padding of the head, never picked.
    compute_dtype: the policy's parameters are cast to it, once per call.
    name: of the program, in messages.
    program_options: of `Program`: say, clock.

  Returns:
    `generate(params, prompt [B, P], prompt_length [B], key, **settings)`:
    the rows are this process's; `key` is one key, the same on each, from which
    row b of the global batch gets `fold_in(key, b)`; `settings` are those of
    `sampling`. Its attribute `program` counts compilations.
  """
  rows = sharding.batch_sharding(mesh)
  replicated = sharding.replicated(mesh)

  def run(params, prompt, prompt_length, key, how, stop_ids):
    batch = prompt.shape[0]
    key = jax.random.wrap_key_data(key)
    row_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))
    return sample(
      model,
      jax.tree.map(lambda p: p.astype(compute_dtype), params),
      prompt,
      prompt_length,
      row_keys,
      how=how,
      stop_ids=stop_ids,
      limit=jnp.full(batch, max_new_tokens, jnp.int32),
      max_new_tokens=max_new_tokens,
      vocab_size=vocab_size,
    )

  everywhere = Rollout(*[rows] * len(Rollout._fields))
  program = Program(name, run, out_shardings=everywhere, **program_options)
  stops = sharding.put(np.asarray(stop_ids, np.int32), replicated)

  def generate(params, prompt, prompt_length, key, **settings) -> Rollout:
    how = sampling(len(prompt), **settings)
    return program(
      params,
      *sharding.put((prompt, prompt_length), rows),
      sharding.put(jax.random.key_data(key), replicated),
      sharding.put(jax.tree.map(np.asarray, how), rows),
      stops,
    )

  generate.program = program
  return generate


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
