"""`jopd sample`: lets a model answer one prompt, or the rows of a file."""

from collections.abc import Iterator, Sequence
from functools import partial
import json
import pathlib
import sys
from typing import NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from jopd import sharding
from jopd.cli import output
from jopd.cli.stream import make_stream, texts
from jopd.data import sources
from jopd.data.batching import PromptBatch, encode_batch
from jopd.data.examples import Example
from jopd.data.filtering import RejectedRows, RowFilter
from jopd.data.prompts import encode_prompt
from jopd.models import hf, hub
from jopd.rollout.continuous_batching import LENGTH, STOP
from jopd.rollout.decode import Policy, make_policy
from jopd.rollout.engine import decode, make_generate
from jopd.rollout.sampling import make_sampling_params
from jopd.rollout.stop_criteria import Stops, make_stops
from jopd.run.config import ConfigError, did_you_mean, error_context

_MAX_NUM_SEQS = 64
# Answers to --input per call. Nothing is printed before a call is over.
_ROWS_PER_CALL = 256
_END_REASONS = {STOP: 'stop', LENGTH: 'length'}


def main(arguments, overrides) -> None:
  """Answers --prompt as text, or the rows of --input as JSONL."""
  del overrides
  sampling = _check_flags(arguments)
  folder = arguments.model or _finished(arguments.workdir, arguments.stage)
  output.prepare()
  if arguments.prompt is not None:
    turn = {'role': 'user', 'content': arguments.prompt}
    model = _load(folder, [Example('--prompt', [turn])], arguments)
    for text in _stream(model, sampling, arguments):
      print(text, end='', flush=True)
    return
  with error_context('--input'):
    # A row that is left out would shift the answers of those after it.
    rows = sources.jsonl(arguments.input, prompt_field=arguments.field)
    examples = RowFilter(RejectedRows(0.0), arguments.input).select(rows)
  model = _load(folder, examples, arguments)
  with output.new_file(arguments.output) as out:
    bar = tqdm(
      _answers(model, examples, sampling, arguments),
      total=len(examples) * arguments.samples,
      desc='sample',
      unit='answer',
      # On a terminal the answers themselves show the progress.
      disable=out.isatty(),
      mininterval=0.1 if sys.stderr.isatty() else 30.0,
    )
    for row in bar:
      output.write_row(out, row)


def _check_flags(arguments) -> dict:
  """Refuses flags that make no sense; returns the sampling settings."""
  if (arguments.model is None) == (arguments.workdir is None):
    raise ConfigError('give one of --model=DIR and --workdir=DIR')
  if arguments.stage and not arguments.workdir:
    raise ConfigError('--stage takes a stage of --workdir=DIR')
  if (arguments.prompt is None) == (arguments.input is None):
    raise ConfigError('give one of --prompt=TEXT and --input=FILE')
  if arguments.prompt is not None and not arguments.prompt.strip():
    raise ConfigError('--prompt is empty')
  if arguments.output and not arguments.input:
    raise ConfigError('--output takes the answers to --input=FILE')
  if arguments.samples < 1 or arguments.max_tokens < 1:
    raise ConfigError('--samples and --max-tokens must be at least 1')
  output.check_new_file(arguments.output)
  names = ('temperature', 'top_k', 'top_p', 'min_p')
  sampling = {name: getattr(arguments, name) for name in names}
  with error_context('sampling flags'):
    make_sampling_params(1, **sampling)
  return sampling


def _finished(workdir: str, stage: str | None) -> str:
  """The model folder of a finished stage, by default the last one."""
  root = pathlib.Path(workdir)
  path = root / 'config.json'
  if not path.is_file():
    raise ConfigError(f'--workdir={workdir} holds no run: {path} is not there')
  stages = json.loads(path.read_text()).get('stages', ())
  done = [s for s in stages if (root / s / 'model' / 'config.json').is_file()]
  if not done:
    raise ConfigError(f'--workdir={workdir} holds no finished stage yet')
  if stage and stage not in done:
    raise ConfigError(
      f'{workdir} has no finished stage {stage!r}{did_you_mean(stage, done)}'
    )
  return str(root / (stage or done[-1]) / 'model')


class _Model(NamedTuple):
  """A model that is ready to answer, and its encoded prompts."""

  tokenizer: object
  policy: Policy
  params: dict
  mesh: jax.sharding.Mesh  # one device, so that any number of rows will do
  prompts: PromptBatch
  stops: Stops
  options: dict  # of `make_generate` and `make_stream`


def _load(folder: str, examples: Sequence[Example], arguments) -> _Model:
  """Loads a model folder; refuses all wrong input before the first answer."""
  with error_context(f'model {folder}'):
    folder = hub.find(folder)
    tokenizer = hf.load_tokenizer(folder)
    positions = hf.read_config(folder).max_positions
  with error_context('--stop'):
    stops = make_stops(
      hf.stop_ids(folder, tokenizer),
      strings=arguments.stop,
      tokenizer=tokenizer,
      vocab_size=len(tokenizer),
    )
  with error_context(f'chat template of {folder}'):
    lengths = [len(encode_prompt(tokenizer, e.messages)) for e in examples]
  longest = max(lengths)
  if longest + arguments.max_tokens > positions:
    raise ConfigError(
      f'{examples[lengths.index(longest)].id}: a prompt of {longest} tokens and'
      f' --max-tokens={arguments.max_tokens} exceed max_position_embeddings ='
      f' {positions} of {folder}'
    )
  prompts = encode_batch(examples, tokenizer, max_prompt_tokens=longest)
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  place = partial(sharding.param_shardings, mesh)
  with error_context(f'model {folder}'):
    model, params = hf.load(folder, shardings=place)
  policy = make_policy(model, vocab_size=len(tokenizer))
  options = dict(
    max_new_tokens=arguments.max_tokens, group_size=arguments.samples
  )
  return _Model(tokenizer, policy, params, mesh, prompts, stops, options)


def _stream(model: _Model, sampling: dict, arguments) -> Iterator[str]:
  """The text of the answers to one prompt, while it is written."""
  steps = make_stream(model.policy, model.mesh, **model.options)(
    model.params,
    model.prompts.prompt,
    model.prompts.prompt_length,
    _key(arguments, 0),
    stops=model.stops,
    **sampling,
  )
  return texts(model.tokenizer, steps)


def _key(arguments, start: int) -> jax.Array:
  """The key of the call that begins with prompt number `start`."""
  return jax.random.fold_in(jax.random.key(arguments.seed), start)


def _answers(
  model: _Model, examples: Sequence[Example], sampling: dict, arguments
) -> Iterator[dict]:
  """The rows of --output: --samples answers to each example, in order."""
  generate = make_generate(
    model.policy, model.mesh, max_num_seqs=_MAX_NUM_SEQS, **model.options
  )
  size = min(max(1, _ROWS_PER_CALL // arguments.samples), len(examples))
  for start in range(0, len(examples), size):
    part = examples[start : start + size]
    # The last batch is filled up, so that it compiles nothing.
    rows = np.resize(np.arange(start, start + len(part)), size)
    rollout = jax.device_get(
      generate(
        model.params,
        model.prompts.prompt[rows],
        model.prompts.prompt_length[rows],
        _key(arguments, start),
        stops=model.stops,
        **sampling,
      )
    )
    responses = decode(model.tokenizer, rollout)
    for i in range(len(part) * arguments.samples):
      example = part[i // arguments.samples]
      yield dict(
        id=example.id,
        prompt=example.messages[-1]['content'],
        response=responses[i],
        tokens=int(rollout.response_length[i]),
        end=_END_REASONS[int(rollout.end_reason[i])],
        # Log-probs are zero beyond the response.
        logp=float(rollout.logp[i].sum(dtype=np.float64)),
        sampler_logp=float(rollout.sampler_logp[i].sum(dtype=np.float64)),
      )
