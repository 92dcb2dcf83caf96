"""The answers of one model folder to prompts, as `jopd sample` shows them."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from jopd import sharding
from jopd.cli.stream import make_stream, texts
from jopd.data.batching import PromptBatch, encode_batch
from jopd.data.examples import Example
from jopd.data.prompts import encode_prompt
from jopd.models import hf, hub
from jopd.rollout.continuous_batching import LENGTH, STOP
from jopd.rollout.decode import Policy, make_policy
from jopd.rollout.engine import decode, make_generate
from jopd.rollout.stop_criteria import Stops, make_stops

# Answers that are decoded at a time, and those to --input that one call asks
# for: what ends early makes room for the next, but nothing is printed before
# the call is over.
_SLOTS, _ROWS = 64, 256
_ENDS = {STOP: 'stop', LENGTH: 'length'}


class Loaded(NamedTuple):
  """What answers, and what it is asked."""

  tokenizer: object
  policy: Policy
  params: dict  # on one device
  prompts: PromptBatch
  stops: Stops
  options: dict  # of `make_generate` and `make_stream`


def _load(folder: str, examples: Sequence[Example], arguments) -> Loaded:
  """All that can be wrong is found here, before the first answer."""
  folder = hub.find(folder)
  tokenizer = hf.load_tokenizer(folder)
  stops = make_stops(
    hf.stop_ids(folder, tokenizer),
    strings=arguments.stop,
    tokenizer=tokenizer,
    vocab_size=len(tokenizer),
  )
  lengths = [len(encode_prompt(tokenizer, e.messages)) for e in examples]
  longest = max(lengths)
  positions = hf.read_config(folder).max_positions
  if longest + arguments.max_tokens > positions:
    raise ConfigError(
      f'{examples[lengths.index(longest)].id}: a prompt of {longest} tokens and'
      f' --max-tokens={arguments.max_tokens} exceed max_position_embeddings ='
      f' {positions} of {folder}'
    )
  prompts = encode_batch(examples, tokenizer, max_prompt_tokens=longest)
  place = partial(sharding.param_shardings, _one_device())
  model, params = hf.load(folder, shardings=place)
  options = dict(
    max_new_tokens=arguments.max_tokens,
    group_size=arguments.samples,
    max_num_seqs=_SLOTS,
  )
  policy = make_policy(model, vocab_size=len(tokenizer))
  return Loaded(tokenizer, policy, params, prompts, stops, options)


def _one_device():
  """So that the number of rows is free."""
  return sharding.make_mesh(devices=jax.devices()[:1])


def stream(
  folder: str,
  examples: Sequence[Example],
  how: dict,
  arguments,
) -> Iterator[str]:
  """The text of the answers to one example, while they are written.

  Args:
    folder: of the model.
    examples: the one.
    how: settings of `sampling`.
    arguments: of the command: samples, max_tokens, stop, seed.

  Raises: ValueError, before there is any text.
  """
  policy = _load(folder, examples, arguments)
  written = make_stream(policy.policy, _one_device(), **policy.options)
  steps = written(
    policy.params,
    policy.prompts.prompt,
    policy.prompts.prompt_length,
    _key(arguments, 0),
    stops=policy.stops,
    **how,
  )
  return texts(policy.tokenizer, steps)


def _key(arguments, start: int) -> jax.Array:
  """The key of the call that begins with prompt number `start`."""
  return jax.random.fold_in(jax.random.key(arguments.seed), start)


def answers(
  folder: str,
  examples: Sequence[Example],
  how: dict,
  arguments,
) -> Iterator[dict]:
  """The rows of --output: to each example as many as --samples says, in order.

  The arguments are those of `stream`; there may be many examples.
  """
  policy = _load(folder, examples, arguments)
  prompts = policy.prompts
  generate = make_generate(policy.policy, _one_device(), **policy.options)
  size = min(max(1, _ROWS // arguments.samples), len(examples))

  def batches():
    for start in range(0, len(examples), size):
      part = examples[start : start + size]
      # The last batch is filled up, so that it compiles nothing.
      rows = np.resize(np.arange(start, start + len(part)), size)
      rollout = generate(
        policy.params,
        prompts.prompt[rows],
        prompts.prompt_length[rows],
        _key(arguments, start),
        stops=policy.stops,
        **how,
      )
      asked = [example for example in part for _ in range(arguments.samples)]
      yield from _rows(asked, policy.tokenizer, jax.device_get(rollout))

  return batches()


def _rows(asked, tokenizer, rollout) -> Iterator[dict]:
  """What is written of each answer; a rollout may have more than were asked."""
  texts = decode(tokenizer, rollout)
  for i, example in enumerate(asked):
    yield dict(
      id=example.id,
      prompt=example.messages[-1]['content'],
      response=texts[i],
      tokens=int(rollout.response_length[i]),
      end=_ENDS[int(rollout.end_reason[i])],
      # Zero beyond the response.
      logp=float(rollout.logp[i].sum(dtype=np.float64)),
      sampler_logp=float(rollout.sampler_logp[i].sum(dtype=np.float64)),
    )
