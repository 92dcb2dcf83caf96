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
from jopd.models import hf
from jopd.programs import cache_compilations
from jopd.rollout.engine import decode, make_generate
from jopd.rollout.pick import sampling
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


# Rows of --prompts that are decoded together.
_ROWS = 64


def sample(arguments, overrides) -> None:
  """Answers --prompt as text, or the rows of --prompts as JSONL."""
  del overrides
  if (arguments.prompt is None) == (arguments.prompts is None):
    raise ValueError('give one of --prompt=TEXT and --prompts=FILE')
  if arguments.out and not arguments.prompts:
    raise ValueError('--out takes the answers to --prompts=FILE')
  if arguments.n < 1 or arguments.max_new_tokens < 1:
    raise ValueError('--n and --max-new-tokens must be at least 1')
  how = dict(
    temperature=arguments.temperature,
    top_k=arguments.top_k,
    top_p=arguments.top_p,
  )
  sampling(1, **how)
  _prepare()
  if arguments.prompt is not None:
    turn = {'role': 'user', 'content': arguments.prompt}
    for _, answer in _answers(arguments, how, [Example('prompt', [turn])]):
      print(answer['response'], flush=True)
    return
  # A row that is left out would shift the answers of those after it.
  examples = sources.jsonl(arguments.prompts, max_bad_share=0.0)
  with contextlib.ExitStack() as stack:
    out = sys.stdout
    if arguments.out:
      out = stack.enter_context(open(arguments.out, 'w', encoding='utf-8'))
    bar = tqdm(
      _answers(arguments, how, examples),
      total=len(examples) * arguments.n,
      desc='sample',
      unit='answer',
      # On a terminal the answers themselves show how far it is.
      disable=out.isatty(),
      mininterval=0.1 if sys.stderr.isatty() else 30.0,
    )
    for example, answer in bar:
      out.write(json.dumps({'id': example.id, **answer}) + '\n')
      out.flush()


def _answers(arguments, how: dict, examples) -> Iterator[tuple[Example, dict]]:
  """As many answers to each example as --n says, batch by batch."""
  tokenizer = hf.load_tokenizer(arguments.model)
  longest = max(len(encode_prompt(tokenizer, e.messages)) for e in examples)
  prompts = encode_batch(examples, tokenizer, max_prompt_tokens=longest)
  # One device, so that the number of rows is free.
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  model, params = hf.load(
    arguments.model,
    shardings=lambda axes, shapes: sharding.param_shardings(mesh, axes, shapes),
  )
  generate = make_generate(
    model,
    mesh,
    stop_ids=hf.stop_ids(arguments.model, tokenizer),
    max_new_tokens=arguments.max_new_tokens,
    vocab_size=len(tokenizer),
    say=say,
  )
  key = jax.random.key(arguments.seed)
  asked = np.repeat(np.arange(len(examples)), arguments.n)
  size = min(_ROWS, len(asked))
  for start in range(0, len(asked), size):
    # The last batch is filled up, so that it compiles nothing.
    rows = np.resize(asked[start : start + size], size)
    rollout = jax.device_get(
      generate(
        params,
        prompts.prompt[rows],
        prompts.prompt_length[rows],
        jax.random.fold_in(key, start),
        **how,
      )
    )
    texts = decode(tokenizer, rollout)
    for i in range(len(asked[start : start + size])):
      answer = dict(
        response=texts[i],
        tokens=int(rollout.response_length[i]),
        stopped=bool(rollout.stopped[i]),
      )
      yield examples[rows[i]], answer


def report(arguments, overrides) -> None:
  """Draws runs and prints where the page is."""
  del overrides
  print(draw(arguments.runs, out=arguments.out))
