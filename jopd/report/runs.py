"""Reads the files of runs for the report."""

from collections.abc import Callable, Collection, Mapping, Sequence
import functools
import json
import math
import os
import pathlib
import re
from typing import Any, NamedTuple

import numpy as np

from jopd.train.errors import WrongInputError
from jopd.train.metrics import gap_recovery

Row = Mapping[str, Any]


class Run(NamedTuple):
  """One run folder, read.

  Attributes:
    name: in charts.
    rows: of metrics.jsonl and timings.jsonl; each has stage, step and kind.
    summary: of summary.json, {} if absent.
    config: of config.json, {} if absent.
  """

  name: str
  rows: list[dict[str, Any]]
  summary: dict[str, Any]
  config: dict[str, Any]


class Curve(NamedTuple):
  """Values over the steps of one stage; steps ascend, values may be NaN."""

  stage: str
  steps: np.ndarray
  values: np.ndarray

  @property
  def known(self) -> np.ndarray:
    """The values that are finite; there is at least one."""
    return self.values[np.isfinite(self.values)]


class Gap(NamedTuple):
  """The accuracy of a stage's student before and after, and of its teacher."""

  run: str
  stage: str
  metric: str
  teacher: str
  before: float
  after: float
  target: float

  @property
  def recovered(self) -> float:
    """The fraction of the gap that was closed; NaN without a gap."""
    return gap_recovery(self.before, self.after, self.target)


def read_runs(folders: Sequence[str | os.PathLike]) -> list[Run]:
  """Reads run folders; their names are as short as possible and differ.

  Raises: WrongInputError if there is no folder, or a metrics.jsonl is missing,
    has no rows or broken rows.
  """
  if not folders:
    raise WrongInputError('expected at least one run folder, got none')
  paths = [pathlib.Path(folder).resolve() for folder in folders]
  names = [path.name for path in paths]
  if len(set(names)) < len(names):
    common = os.path.commonpath(paths)
    names = [os.path.relpath(path, common) for path in paths]
  return [
    _read_run(path, name) for path, name in zip(paths, names, strict=True)
  ]


def number(row: Row, name: str) -> float:
  """row[name] as a float, or NaN if it is absent, null or not a number.

  metrics.jsonl has the strings "nan", "inf" and "-inf".
  """
  try:
    return float(row.get(name, math.nan))
  except (TypeError, ValueError):
    return math.nan


def curves(run: Run, value: Callable[[Row], float]) -> list[Curve]:
  """`value` over the steps of each stage's train rows, if any is finite."""
  result = []
  for stage in stages(run):
    rows = [r for r in run.rows if (r['stage'], r['kind']) == (stage, 'train')]
    result += _curve(stage, rows, value)
  return result


def evaluations(
  run: Run, name: str, *, references: bool = False
) -> list[tuple[str, Curve]]:
  """(model, curve) per stage: of the student, or else of the other models.

  The student is evaluated until the end, other models once.
  """
  result = []
  value = functools.partial(number, name=name)
  for stage in stages(run):
    by_model: dict[str, list[Row]] = {}
    for row in run.rows:
      if (row['stage'], row['kind']) == (stage, 'eval'):
        by_model.setdefault(str(row.get('model', 'student')), []).append(row)
    last = {m: max(r['step'] for r in rows) for m, rows in by_model.items()}
    learner = max(last, key=lambda m: (last[m], m == 'student'), default=None)
    for model, rows in by_model.items():
      if (model != learner) == references:
        result += [(model, curve) for curve in _curve(stage, rows, value)]
  return result


def metric_names(runs: Sequence[Run], prefix: str) -> list[str]:
  """The metrics named `prefix` and a number, such as avg_at_8, in order."""
  pattern = re.compile(re.escape(prefix) + r'\d+')
  names = {name for run in runs for row in run.rows for name in row}
  numbered = filter(pattern.fullmatch, names)
  return sorted(numbered, key=lambda name: int(name.removeprefix(prefix)))


def stages(run: Run) -> list[str]:
  """In the order in which they ran."""
  return list(dict.fromkeys(row['stage'] for row in run.rows))


def timeline(
  runs: Sequence[Run], shown: Collection[str]
) -> dict[str, tuple[int, int]]:
  """Stage -> (start, end) on the axis of all runs, for the stages in `shown`.

  A stage has its largest length of all runs, and its first place.
  """
  length: dict[str, int] = {}
  for run in runs:
    for row in run.rows:
      if row['stage'] in shown:
        length[row['stage']] = max(length.get(row['stage'], 1), row['step'])
  spans, start = {}, 0
  for stage, steps in length.items():
    spans[stage] = (start, start + steps)
    start += steps
  return spans


def gaps(run: Run) -> list[Gap]:
  """One per stage and teacher, by greedy accuracy, or else by avg@k."""
  for metric in ('greedy_accuracy', *metric_names([run], 'avg_at_')):
    students = {c.stage: c.known for _, c in evaluations(run, metric)}
    result = [
      Gap(
        run.name,
        teacher.stage,
        metric,
        model,
        before=float(students[teacher.stage][0]),
        after=float(students[teacher.stage][-1]),
        target=float(teacher.known[-1]),
      )
      for model, teacher in evaluations(run, metric, references=True)
      if len(students.get(teacher.stage, ())) > 1
    ]
    if result:
      return result
  return []


def seconds(run: Run) -> dict[str, dict[str, float]]:
  """Stage -> phase -> wall seconds, summed over all rows."""
  result: dict[str, dict[str, float]] = {}
  for row in run.rows:
    for name in row:
      spent = number(row, name)
      if name.startswith('seconds/') and math.isfinite(spent):
        phases = result.setdefault(row['stage'], {})
        phase = name.removeprefix('seconds/')
        phases[phase] = phases.get(phase, 0.0) + spent
  return result


def _curve(
  stage: str, rows: Sequence[Row], value: Callable[[Row], float]
) -> list[Curve]:
  """One curve, or none without a finite value; a later row of a step wins."""
  points = {row['step']: value(row) for row in rows}
  steps = np.array(sorted(points))
  values = np.array([points[step] for step in sorted(points)], np.float64)
  values[~np.isfinite(values)] = np.nan
  return [Curve(stage, steps, values)] if np.isfinite(values).any() else []


def _read_run(folder: pathlib.Path, name: str) -> Run:
  metrics = folder / 'metrics.jsonl'
  if not metrics.is_file():
    raise WrongInputError(
      f'{metrics}: not found; expected the folder that `jopd train` was given '
      'as --workdir'
    )
  rows = _read_rows(metrics)
  if not rows:
    raise WrongInputError(f'{metrics}: has no complete row yet')
  if (timings := folder / 'timings.jsonl').is_file():
    rows += _read_rows(timings)
  summary = _read_object(folder / 'summary.json')
  config = _read_object(folder / 'config.json')
  return Run(name, rows, summary, config)


def _read_rows(path: pathlib.Path) -> list[dict[str, Any]]:
  lines = path.read_text(encoding='utf-8', errors='replace').split('\n')
  rows = []
  for place, line in enumerate(lines, start=1):
    try:
      row = json.loads(line)
      row['stage'], row['kind'] = str(row['stage']), str(row['kind'])
      row['step'] = int(row['step'])
      rows.append(row)
    except (ValueError, KeyError, TypeError) as error:
      if place == len(lines):  # empty, or still being written
        break
      raise WrongInputError(
        f'{path}:{place}: expected a JSON object with stage, step and kind, '
        f'got {line[:60]!r}; repair or delete the line'
      ) from error
  return rows


def _read_object(path: pathlib.Path) -> dict[str, Any]:
  if not path.is_file():
    return {}
  try:
    value = json.loads(path.read_text(encoding='utf-8'))
  except ValueError as error:
    raise WrongInputError(f'{path}: is not JSON ({error})') from error
  if not isinstance(value, dict):
    raise WrongInputError(f'{path}: expected a JSON object, got {value!r:.60}')
  return value
