"""What each console command does."""

from collections.abc import Iterator
import contextlib
import json
import logging
import pathlib
import sys

import jax
import numpy as np
from tqdm import tqdm

from jopd import build, sharding
from jopd import config as configs
from jopd.data import sources
from jopd.data.batching import encode_batch
from jopd.data.examples import Example
from jopd.data.prompts import encode_prompt
from jopd.diagnose.report import report as draw
from jopd.doctor.examine import examine
from jopd.doctor.findings import worst
from jopd.doctor.page import as_json, page
from jopd.models import hf
from jopd.programs import cache_compilations
from jopd.rollout.engine import decode, make_generate
from jopd.rollout.pick import sampling
from jopd.rollout.slots import BUDGET, LENGTH, STOP
from jopd.rollout.stops import make_stops
from jopd.train import pipeline


def say(line: str) -> None:
  """A line for the person who waits, above any progress bar."""
  tqdm.write(line, file=sys.stderr)


class _Say(logging.Handler):
  """Says what the rooms below log: rows that were dropped, and how many."""

  def emit(self, record):
    say(f'{record.levelname.lower()}: {record.getMessage()}')


def _prepare() -> None:
  log = logging.getLogger('jopd')
  log.handlers = [_Say()]
  log.propagate = False  # or a library's handler says it again
  cache_compilations()


def train(arguments, overrides) -> None:
  """Runs a config, then prints its table and draws its report."""
  config = configs.load(arguments.config, overrides)
  workdir = pathlib.Path(arguments.workdir)
  _refuse_other_work(workdir, config)
  if arguments.distributed:
    jax.distributed.initialize()
  _prepare()
  built = build.build(config, say=say)
  workdir.mkdir(parents=True, exist_ok=True)
  if jax.process_index() == 0:
    (workdir / 'config.json').write_text(_json(config))
  summary = pipeline.train(built.run, built.stages, built.params, workdir)
  if jax.process_index() == 0:
    page = draw([workdir])
    print(table(summary))
    print(f'model    {summary["model"]}')
    print(f'report   {page}')


def _json(config) -> str:
  return config.to_json_best_effort(indent=2) + '\n'


def _refuse_other_work(workdir: pathlib.Path, config) -> None:
  """A finished stage is kept, so it must be of the settings that are asked for.

  Where the work runs and how often it is saved may change, and so may stages
  that are not finished, as far as their checkpoints allow.
  """
  for folder in (workdir, *workdir.parents):
    if folder.is_file():
      raise ValueError(f'--workdir={workdir}: {folder} is a file, not a folder')
  path = workdir / 'config.json'
  finished = {result.parent.name for result in workdir.glob('*/result.json')}
  if not path.is_file() or not finished:
    return
  before, now = json.loads(path.read_text()), json.loads(_json(config))
  free = {'stages', 'mesh', 'remat', 'checkpoint'}
  fixed = sorted({*configs.base(), *finished} - free)
  changed = [key for key in fixed if now.get(key) != before.get(key)]
  if changed:
    raise ValueError(
      f'{workdir} holds {", ".join(sorted(finished))}, finished with another'
      f' config.{changed[0]} (see {path}); take that one, or another --workdir'
    )


def table(summary: dict) -> str:
  """The accuracies of a run as text, a row per stage."""
  columns = ('student_before', 'student_after', 'teacher', 'gap_recovered')
  lines = [' '.join([f'{"stage":<12}', *(f'{c:>15}' for c in columns)])]
  for name, result in summary['stages'].items():
    cells = ['-' if result[c] is None else f'{result[c]:.3f}' for c in columns]
    lines.append(' '.join([f'{name:<12}', *(f'{c:>15}' for c in cells)]))
  return '\n'.join(lines)


def eval(arguments, overrides) -> None:
  """Prints the accuracies of a Hugging Face folder as JSON."""
  config = configs.load(arguments.config, overrides)
  _prepare()
  evaluate = build.build_evaluation(config, arguments.model, say=say)
  print(json.dumps({'model': arguments.model, **evaluate()}, indent=2))


# Answers that are decoded at a time, and those asked for in one call: what ends
# early makes room for the next, but nothing is printed before the call is over.
_SLOTS, _ROWS = 64, 256
_ENDS = {STOP: 'stop', LENGTH: 'length', BUDGET: 'budget'}


def sample(arguments, overrides) -> None:
  """Answers --prompt as text, or the rows of --input as JSONL."""
  del overrides
  how = _check_sample(arguments)
  folder = arguments.model or _finished(arguments.workdir, arguments.stage)
  _prepare()
  if arguments.prompt is not None:
    turn = {'role': 'user', 'content': arguments.prompt}
    examples = [Example('--prompt', [turn])]
    for answer in _answers(folder, examples, how, arguments):
      print(answer['response'], flush=True)
    return
  # A row that is left out would shift the answers of those after it.
  examples = sources.jsonl(
    arguments.input, prompt_field=arguments.field, max_bad_share=0.0
  )
  answers = _answers(folder, examples, how, arguments)
  with contextlib.ExitStack() as stack:
    out = sys.stdout
    if arguments.output:
      out = stack.enter_context(open(arguments.output, 'x', encoding='utf-8'))
    bar = tqdm(
      answers,
      total=len(examples) * arguments.samples,
      desc='sample',
      unit='answer',
      # On a terminal the answers themselves show how far it is.
      disable=out.isatty(),
      mininterval=0.1 if sys.stderr.isatty() else 30.0,
    )
    for answer in bar:
      out.write(json.dumps(answer) + '\n')
      out.flush()


def _check_sample(arguments) -> dict:
  """The settings of `sampling`; refuses flags that make no sense."""
  if (arguments.model is None) == (arguments.workdir is None):
    raise ValueError('give one of --model=DIR and --workdir=DIR')
  if arguments.stage and not arguments.workdir:
    raise ValueError('--stage takes a stage of --workdir=DIR')
  if (arguments.prompt is None) == (arguments.input is None):
    raise ValueError('give one of --prompt=TEXT and --input=FILE')
  if arguments.prompt is not None and not arguments.prompt.strip():
    raise ValueError('--prompt is empty')
  if arguments.output and not arguments.input:
    raise ValueError('--output takes the answers to --input=FILE')
  if arguments.samples < 1 or arguments.max_tokens < 1:
    raise ValueError('--samples and --max-tokens must be at least 1')
  if arguments.output:
    output = pathlib.Path(arguments.output)
    if output.exists():
      raise ValueError(f'--output={output} exists: remove it, or name another')
    if not output.parent.is_dir():
      raise ValueError(f'--output={output}: {output.parent} is not a folder')
  names = ('temperature', 'top_k', 'top_p', 'min_p')
  how = {name: getattr(arguments, name) for name in names}
  sampling(1, **how)
  return how


def _finished(workdir: str, stage: str | None) -> str:
  """The model folder of a finished stage, by default the last one."""
  root = pathlib.Path(workdir)
  path = root / 'config.json'
  if not path.is_file():
    raise ValueError(f'--workdir={workdir} holds no run: {path} is not there')
  stages = json.loads(path.read_text()).get('stages', ())
  done = [s for s in stages if (root / s / 'model' / 'config.json').is_file()]
  if not done:
    raise ValueError(f'--workdir={workdir} holds no finished stage yet')
  if stage and stage not in done:
    raise ValueError(
      f'{workdir} has no finished stage {stage!r}'
      f'{configs.did_you_mean(stage, done)}'
    )
  return str(root / (stage or done[-1]) / 'model')


def _answers(folder: str, examples, how: dict, arguments) -> Iterator[dict]:
  """As many answers to each example as --samples says, in order.

  All that can be wrong is found at once, before the first answer is asked for.
  """
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
    raise ValueError(
      f'{examples[lengths.index(longest)].id}: a prompt of {longest} tokens and'
      f' --max-tokens={arguments.max_tokens} exceed max_position_embeddings ='
      f' {positions} of {folder}'
    )
  prompts = encode_batch(examples, tokenizer, max_prompt_tokens=longest)
  # One device, so that the number of rows is free.
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  model, params = hf.load(
    folder,
    shardings=lambda axes, shapes: sharding.param_shardings(mesh, axes, shapes),
  )
  generate = make_generate(
    model,
    mesh,
    stops=stops,
    max_new_tokens=arguments.max_tokens,
    group_size=arguments.samples,
    slots=_SLOTS,
    vocab_size=len(tokenizer),
    say=say,
  )
  key = jax.random.key(arguments.seed)
  size = min(max(1, _ROWS // arguments.samples), len(examples))

  def batches():
    for start in range(0, len(examples), size):
      part = examples[start : start + size]
      # The last batch is filled up, so that it compiles nothing.
      rows = np.resize(np.arange(start, start + len(part)), size)
      rollout = generate(
        params,
        prompts.prompt[rows],
        prompts.prompt_length[rows],
        jax.random.fold_in(key, start),
        **how,
      )
      asked = [example for example in part for _ in range(arguments.samples)]
      yield from _rows(asked, tokenizer, jax.device_get(rollout))

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
      end=_ENDS[int(rollout.end[i])],
      # Zero beyond the response.
      logp=float(rollout.logp[i].sum(dtype=np.float64)),
      sampler_logp=float(rollout.sampler_logp[i].sum(dtype=np.float64)),
    )


def doctor(arguments, overrides) -> int:
  """Prints what speaks against training a config; returns the exit code."""
  config = configs.load(arguments.config, overrides)
  if arguments.workdir:
    workdir = pathlib.Path(arguments.workdir)
    if not (workdir / 'config.json').is_file():
      raise ValueError(f'--workdir={workdir} holds no run: no config.json')
    _refuse_other_work(workdir, config)
  _prepare()
  findings = examine(
    config, workdir=arguments.workdir, prompts=arguments.prompts, say=say
  )
  print(as_json(findings) if arguments.json else page(findings))
  return {'ok': 0, 'warn': 3, 'refuse': 2}[worst(findings)]


def report(arguments, overrides) -> None:
  """Draws runs and prints where the page is."""
  del overrides
  print(draw(arguments.runs, out=arguments.out))
