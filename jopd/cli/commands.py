"""What each console command does."""

import contextlib
from functools import partial
import json
import logging
import pathlib
import sys

import jax
from tqdm import tqdm

from jopd.cli import generate, signals
from jopd.compilation import cache_compilations
from jopd.data import sources
from jopd.data.examples import Example
from jopd.data.filtering import RejectedRows, RowFilter
from jopd.doctor.examine import examine
from jopd.doctor.findings import as_json, page, worst
from jopd.plan import table as plans
from jopd.plan.plan import plan as make_plan
from jopd.report.report import report as draw
from jopd.rollout.sampling import make_sampling_params
from jopd.run import build
from jopd.run import config as configs
from jopd.run.config import ConfigError
from jopd.run.overrides import load
from jopd.run.resolve import own_functions, plain, qualified_name, source_hash
from jopd.train import distributed, pipeline

_EXIT = {'ok': 0, 'warn': 3, 'refuse': 2}  # of doctor and plan


def say(line: str) -> None:
  """A line for the person who waits, above any progress bar."""
  tqdm.write(line, file=sys.stderr)


class _Say(logging.Handler):
  """Says what the rooms below log: rows that were dropped, and how many."""

  def emit(self, record):
    level = '' if record.levelno == logging.INFO else record.levelname.lower()
    say(level + ': ' * bool(level) + record.getMessage())


def _prepare() -> None:
  log = logging.getLogger('jopd')
  log.handlers = [_Say()]
  log.setLevel(logging.INFO)
  log.propagate = False  # or a library's handler says it again
  cache_compilations()


def train(arguments, overrides) -> None:
  """Runs a config, then prints its table and draws its report."""
  config = load(arguments.config, overrides)
  workdir = pathlib.Path(arguments.workdir)
  by_hand = (arguments.coordinator, arguments.processes, arguments.process)
  if arguments.distributed or any(value is not None for value in by_hand):
    distributed.join(*by_hand)
  _prepare()
  summary = run(config, workdir, strict=arguments.strict)
  if jax.process_index() == 0:
    page = draw([workdir])
    print(table(summary))
    print(f'model    {summary["model"]}')
    print(f'report   {page}')


def run(config, workdir: pathlib.Path, *, strict: bool = False) -> dict:
  """Runs a config in a folder, or what is left of it; returns the summary.

  Args:
    config: of a file in `configs/`, or made like one.
    workdir: of the run. Finished stages that it holds are kept.
    strict: stops where a file of an earlier run is damaged.

  Raises:
    ValueError, FileNotFoundError: a setting is wrong, or the folder holds
      finished work of other settings; nothing was written but the rows that
      are left out.
    Stopped: SIGTERM or Ctrl-C; the same call goes on.
    NonFiniteLossError: update after update had to be skipped.
  """
  # All processes need one config and one data, or they wait for each other.
  distributed.check_same('config.', json.loads(_json(config)))
  _refuse_other_work(workdir, config)
  left_out = workdir / 'quarantine.jsonl'
  built = build.build(config, left_out=left_out)
  distributed.check_same(
    'data of ', {s.name: s.prompts.batches.get_state() for s in built.stages}
  )
  workdir.mkdir(parents=True, exist_ok=True)
  if jax.process_index() == 0:
    (workdir / 'config.json').write_text(_json(config))
    _note_changed_functions(config, workdir / 'functions.json')
  with signals.noted(say) as stop:
    return pipeline.train(
      built.run._replace(should_stop=stop),
      built.stages,
      built.params,
      workdir,
      strict=strict,
    )


def _json(config) -> str:
  """A config as it is recorded: functions by their qualified names."""
  return json.dumps(plain(config), indent=2, sort_keys=True) + '\n'


def _note_changed_functions(config, path: pathlib.Path) -> None:
  """Logs the user's own functions whose source is not that of the run's start.

  Args:
    config: whose functions are meant.
    path: a file with the hash of each source, written at the run's start.
  """
  hashes = {qualified_name(f): source_hash(f) for f in own_functions(config)}
  if path.is_file():
    before = json.loads(path.read_text())
    for name in sorted(hashes.keys() & before.keys()):
      if hashes[name] != before[name]:
        _log.info(
          'note: the source of %s has changed since the run began', name
        )
  if hashes:
    path.write_text(json.dumps(hashes, indent=2, sort_keys=True) + '\n')


def _refuse_other_work(workdir: pathlib.Path, config) -> None:
  """A finished stage is kept, so it must be of the settings that are asked for.

  Where the work runs and how often it is saved may change, and so may stages
  that are not finished, as far as their checkpoints allow.
  """
  for folder in (workdir, *workdir.parents):
    if folder.is_file():
      raise ConfigError(
        f'--workdir={workdir}: {folder} is a file, not a folder'
      )
  path = workdir / 'config.json'
  finished = {result.parent.name for result in workdir.glob('*/result.json')}
  if not path.is_file() or not finished:
    return
  before, now = json.loads(path.read_text()), json.loads(_json(config))
  free = {
    'stages',
    'mesh',
    'remat',
    'checkpoint',
    'eval_tasks',
    'max_bad_row_fraction',
    'loggers',
  }
  fixed = sorted({*configs.base(), *finished} - free)
  changed = [key for key in fixed if now.get(key) != before.get(key)]
  if changed:
    raise ConfigError(
      f'{workdir} holds {", ".join(sorted(finished))}, finished with another'
      f' config.{changed[0]} (see {path}); take that one, or another --workdir'
    )


def table(summary: dict) -> str:
  """The accuracies of a run as text, a row per stage."""
  columns = ('student_before', 'student_after', 'teacher', 'gap_recovery')
  lines = [' '.join([f'{"stage":<12}', *(f'{c:>15}' for c in columns)])]
  for name, result in summary['stages'].items():
    cells = ['-' if result[c] is None else f'{result[c]:.3f}' for c in columns]
    lines.append(' '.join([f'{name:<12}', *(f'{c:>15}' for c in cells)]))
  return '\n'.join(lines)


def eval(arguments, overrides) -> None:
  """Prints the accuracies of a Hugging Face folder as JSON."""
  config = load(arguments.config, overrides)
  _check_output(arguments.output)
  _prepare()
  with _writing(arguments.output) as out:
    record = None if out is sys.stdout else partial(_write_row, out)
    evaluate = build.build_evaluation(config, arguments.model, record=record)
    results = evaluate()
  if set(results) == {'eval_data'}:
    results = results['eval_data']
  else:
    say(eval_table(results))
    results = {'tasks': results}
  print(json.dumps({'model': arguments.model, **results}, indent=2))


def eval_table(results: dict[str, dict]) -> str:
  """The accuracies of several tasks as text, a row per task.

  Args:
    results: task -> the numbers of `evaluate.make_evaluate`.

  Returns:
    Percentages with their intervals, and their mean over tasks without one.
  """
  first = next(iter(results.values()))
  columns = [name for name in first if f'{name}_low' in first]
  width = max(len('mean'), *map(len, results))
  rows = [['', *columns]]
  for task, numbers in results.items():
    cells = []
    for column in columns:
      ends = (100 * numbers[column + end] for end in ('', '_low', '_high'))
      cells.append('{:.1f} [{:.1f}, {:.1f}]'.format(*ends))
    rows.append([task, *cells])
  means = [sum(r[c] for r in results.values()) / len(results) for c in columns]
  rows.append(['mean', *(f'{100 * mean:.1f}' for mean in means)])
  return '\n'.join(
    ' '.join([f'{name:<{width}}', *(f'{cell:>20}' for cell in cells)])
    for name, *cells in rows
  )


@contextlib.contextmanager
def _writing(path: str | None):
  """The file for --output, which must be new; without one, standard output."""
  if not path:
    yield sys.stdout
    return
  with open(path, 'x', encoding='utf-8') as out:
    yield out


def _write_row(out, row: dict) -> None:
  out.write(json.dumps(row) + '\n')
  out.flush()


def sample(arguments, overrides) -> None:
  """Answers --prompt as text, or the rows of --input as JSONL."""
  del overrides
  how = _check_sample(arguments)
  folder = arguments.model or _finished(arguments.workdir, arguments.stage)
  _prepare()
  if arguments.prompt is not None:
    turn = {'role': 'user', 'content': arguments.prompt}
    examples = [Example('--prompt', [turn])]
    for text in generate.stream(folder, examples, how, arguments):
      print(text, end='', flush=True)
    return
  # A row that is left out would shift the answers of those after it.
  rows = sources.jsonl(arguments.input, prompt_field=arguments.field)
  examples = RowFilter(RejectedRows(0.0), arguments.input).select(rows)
  answers = generate.answers(folder, examples, how, arguments)
  with _writing(arguments.output) as out:
    bar = tqdm(
      answers,
      total=len(examples) * arguments.samples,
      desc='sample',
      unit='answer',
      # On a terminal the answers themselves show how far it is.
      disable=out.isatty(),
      mininterval=0.1 if sys.stderr.isatty() else 30.0,
    )
    for row in bar:
      _write_row(out, row)


def _check_sample(arguments) -> dict:
  """The settings of `make_sampling_params`; refuses flags that make no sense."""
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
  _check_output(arguments.output)
  names = ('temperature', 'top_k', 'top_p', 'min_p')
  how = {name: getattr(arguments, name) for name in names}
  make_sampling_params(1, **how)
  return how


def _check_output(path: str | None) -> None:
  """Refuses --output before the work that it is for."""
  output = pathlib.Path(path or '')
  if path and output.exists():
    raise ConfigError(f'--output={output} exists: remove it, or name another')
  if path and not output.parent.is_dir():
    raise ConfigError(f'--output={output}: {output.parent} is not a folder')


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
      f'{workdir} has no finished stage {stage!r}'
      f'{configs.did_you_mean(stage, done)}'
    )
  return str(root / (stage or done[-1]) / 'model')


def doctor(arguments, overrides) -> int:
  """Prints what speaks against training a config; returns the exit code."""
  config = load(arguments.config, overrides)
  if arguments.workdir:
    workdir = pathlib.Path(arguments.workdir)
    if not (workdir / 'config.json').is_file():
      raise ConfigError(f'--workdir={workdir} holds no run: no config.json')
    _refuse_other_work(workdir, config)
  _prepare()
  findings = examine(
    config, workdir=arguments.workdir, prompts=arguments.prompts
  )
  print(as_json(findings) if arguments.json else page(findings))
  return _EXIT[worst(findings)]


def plan(arguments, overrides) -> int:
  """Prints what a config will need on some devices; returns the exit code."""
  config = load(arguments.config, overrides)
  _prepare()
  found = make_plan(config, arguments.topology)
  print(plans.as_json(found) if arguments.json else plans.page(found))
  return _EXIT[plans.status(found)]


def report(arguments, overrides) -> None:
  """Draws runs and prints where the page is."""
  del overrides
  print(draw(arguments.runs, out=arguments.out))
