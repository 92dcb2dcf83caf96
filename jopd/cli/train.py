"""`jopd train`: runs the stages of a config."""

import json
import logging
import pathlib

import jax

from jopd.cli import output, signals
from jopd.report.report import report
from jopd.run import build
from jopd.run import config as configs
from jopd.run.config import ConfigError
from jopd.run.overrides import load
from jopd.run.resolve import own_functions, plain, qualified_name, source_hash
from jopd.train import distributed, pipeline

_log = logging.getLogger(__name__)
# Settings that may change after a stage is finished: where the work runs, how
# often it is saved and shown, and which stages there are.
_FREE = {
  'stages',
  'mesh',
  'remat',
  'checkpoint',
  'eval_tasks',
  'max_bad_row_fraction',
  'loggers',
}


def main(arguments, overrides) -> None:
  """Runs a config, then prints its table and draws its report."""
  config = load(arguments.config, overrides)
  workdir = pathlib.Path(arguments.workdir)
  process = (arguments.coordinator, arguments.processes, arguments.process)
  if arguments.distributed or any(value is not None for value in process):
    distributed.join(*process)
  output.prepare()
  summary = run(config, workdir, strict=arguments.strict)
  if jax.process_index() == 0:
    page = report([workdir])
    print(table(summary))
    print(f'model    {summary["model"]}')
    print(f'report   {page}')


def run(config, workdir: pathlib.Path, *, strict: bool = False) -> dict:
  """Runs a config in a folder, or goes on where it stopped.

  Args:
    config: of a file in `configs/`, or made like one.
    workdir: of the run. Finished stages that it holds are kept.
    strict: stops where a file of an earlier run is damaged.

  Returns:
    What `pipeline.train` writes to `summary.json`.

  Raises:
    ConfigError: a setting is wrong, or the folder holds finished work of other
      settings; nothing was written but the rows that are left out.
    WrongInputError: a file of the run is damaged.
    Stopped: SIGTERM or Ctrl-C; the same call goes on.
    NonFiniteLossError: update after update had to be skipped.
  """
  # Processes that differ in config or data would wait for each other for ever.
  distributed.check_same('config.', json.loads(_json(config)))
  refuse_other_work(workdir, config)
  built = build.build(config, left_out=workdir / 'quarantine.jsonl')
  distributed.check_same(
    'data of ', {s.name: s.prompts.batches.get_state() for s in built.stages}
  )
  workdir.mkdir(parents=True, exist_ok=True)
  if jax.process_index() == 0:
    (workdir / 'config.json').write_text(_json(config))
    _note_changed_functions(config, workdir / 'functions.json')
  with signals.stop_requested() as should_stop:
    return pipeline.train(
      built.run._replace(should_stop=should_stop),
      built.stages,
      built.params,
      workdir,
      strict=strict,
    )


def _json(config) -> str:
  """A config as it is recorded: functions by their qualified names."""
  return json.dumps(plain(config), indent=2, sort_keys=True) + '\n'


def _note_changed_functions(config, path: pathlib.Path) -> None:
  """Logs functions of the user whose source has changed since the run began.

  Args:
    config: names the functions.
    path: of a file with the hash of each source when the run first used it.
  """
  now = {qualified_name(f): source_hash(f) for f in own_functions(config)}
  first = json.loads(path.read_text()) if path.is_file() else {}
  for name in sorted(now.keys() & first.keys()):
    if now[name] != first[name]:
      _log.info('note: the source of %s has changed since the run began', name)
  if now.keys() - first.keys():
    hashes = json.dumps(now | first, indent=2, sort_keys=True)
    path.write_text(hashes + '\n')


def refuse_other_work(workdir: pathlib.Path, config) -> None:
  """Refuses a folder whose finished stages had other settings.

  Stages that are not finished may change as far as their checkpoints allow.

  Raises:
    ConfigError: the message names the first setting that differs.
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
  for key in sorted({*configs.base(), *finished} - _FREE):
    if now.get(key) != before.get(key):
      raise ConfigError(
        f'{workdir} holds {", ".join(sorted(finished))}, finished with another'
        f' config.{key} (see {path}); take that one, or another --workdir'
      )


def table(summary: dict) -> str:
  """The accuracies of a run as text, a row per stage."""
  columns = ('student_before', 'student_after', 'teacher', 'gap_recovery')
  lines = [' '.join([f'{"stage":<12}', *(f'{c:>15}' for c in columns)])]
  for name, result in summary['stages'].items():
    cells = ['-' if result[c] is None else f'{result[c]:.3f}' for c in columns]
    lines.append(' '.join([f'{name:<12}', *(f'{c:>15}' for c in cells)]))
  return '\n'.join(lines)
