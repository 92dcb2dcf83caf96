"""What a run writes down: pairs that add up, a log on disk, a clock.

`metrics.jsonl` is the record of truth: one strict JSON object per line, in the
order in which things happened. Nothing here decides anything; a run trains the
same with its metrics thrown away.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
from functools import partial
import json
import logging
import math
import os
import pathlib
import time
from typing import Any

import jax
from jax.typing import ArrayLike

from jopd.models import files
from jopd.train.errors import WrongInputError, is_disk_full
from jopd.train.loggers import BackgroundLogger, Logger

_log = logging.getLogger(__name__)

# Name -> (sum, count). A mean of means is wrong as soon as two micro-batches
# hold different numbers of tokens; sums and counts simply add.
Metrics = dict[str, tuple[ArrayLike, ArrayLike]]

_PLACE = ('stage', 'step', 'kind')  # the keys that say where a row belongs


def merge(a: Metrics, b: Metrics) -> Metrics:
  """Adds sums to sums and counts to counts; a name may be in one of the two.

  Works on arrays under `jit` as well as on host numbers.
  """
  merged = a | b
  for name in a.keys() & b.keys():
    (sum_a, count_a), (sum_b, count_b) = a[name], b[name]
    merged[name] = (sum_a + sum_b, count_a + count_b)
  return merged


def means(metrics: Metrics) -> dict[str, float]:
  """Host floats, sum / count; a name with count 0 has no mean and is left out.

  Fetches all values in one transfer and waits for them, so it is not for use
  under `jit`.
  """
  pairs = jax.device_get(metrics)
  return {
    name: float(total) / float(count)
    for name, (total, count) in pairs.items()
    if count
  }


def gap_recovery(before: float, after: float, teacher: float) -> float:
  """(after - before) / (teacher - before); NaN without a gap to recover.

  Args:
    before: accuracy of the student before training.
    after: its accuracy afterwards.
    teacher: accuracy of the teacher.

  References: Li et al., "Rethinking On-Policy Distillation of LLMs", arXiv
    2604.13016, section 4.1 of its recipe metrics.

  Example:
    >>> gap_recovery(0.5, 0.9, 1.0)
    0.8
  """
  gap = teacher - before
  return (after - before) / gap if gap > 0 else float('nan')


class Clock:
  """Wall seconds per phase: `with clock('rollout'): ...`.

  Phases may nest; each second is charged to the innermost one, so that phases
  add up to the time spent. JAX returns before the work is done: block on the
  results inside the `with`, or the next phase pays for them.

  Attributes:
    seconds: phase -> seconds since the last `snapshot`.
  """

  def __init__(self):
    self.seconds: dict[str, float] = {}
    self._charged = 0.0  # over all phases, and never reset

  @contextlib.contextmanager
  def __call__(self, phase: str) -> Iterator[None]:
    start, charged_before = time.perf_counter(), self._charged
    try:
      yield
    finally:
      inner = self._charged - charged_before
      own = time.perf_counter() - start - inner
      self._charged += own
      self.seconds[phase] = self.seconds.get(phase, 0.0) + own

  def snapshot(self) -> dict[str, float]:
    """{'seconds/<phase>': s} since the last snapshot; then starts anew."""
    taken = {f'seconds/{name}': s for name, s in self.seconds.items()}
    self.seconds = {}
    return taken


class MetricsLog:
  """Appends rows to `<folder>/<name>.jsonl`, and shows them to loggers.

  A row is {"stage", "step", "kind", ...}, such as kind "train", or kind "eval"
  with the name of the evaluated "model". JSON has no NaN or infinity, yet which
  of them came is the first thing to know about a run that broke: they are
  written as the strings "nan", "inf" and "-inf", which `float()` reads back.

  Each row is written when `write` returns and outlives a killed process. A line
  torn by a crash is dropped when the log is opened again. While the disk is
  full, which is told once on stderr, rows wait in memory for room; other errors
  are not hidden: a record of truth has no silent holes. Where training
  runs on several hosts, each has a file of its own, `<name>.host1.jsonl` for
  the second one.

  Loggers are shown the rows by the first host; see loggers.py.

  Args:
    folder: the run's folder, made if absent.
    name: of the log; timings have their own, so that `metrics.jsonl` is the
      same, byte for byte, however often a run was interrupted.
    loggers: name -> (folder, log) -> logger.
  """

  def __init__(
    self,
    folder: str | os.PathLike,
    name: str = 'metrics',
    *,
    loggers: Mapping[str, Callable[[pathlib.Path, str], Logger]] = {},
  ):
    folder, host = pathlib.Path(folder), jax.process_index()
    folder.mkdir(parents=True, exist_ok=True)
    self._path = folder / (
      f'{name}.host{host}.jsonl' if host else f'{name}.jsonl'
    )
    self._path.touch()
    self._waiting: list[bytes] = []  # rows for which the disk has no room
    self._warned = False
    self._keep(lambda stage, step: True)  # mends a torn last line
    self._loggers = [
      BackgroundLogger(partial(make, folder, name), f'{logger} of {name}')
      for logger, make in loggers.items()
      if host == 0
    ]

  def write(
    self, stage: str, step: int, kind: str, values: Mapping[str, Any]
  ) -> None:
    """Appends one row; a value is a number, an array of one, or a string.

    Raises:
      ValueError: a name in `values` is one of stage, step, kind; or a value is
        neither a string nor one number.
    """
    if taken := values.keys() & set(_PLACE):
      raise ValueError(
        f'a metric may not be named {sorted(taken)}: those say where a row '
        'belongs; rename it'
      )
    row = {'stage': stage, 'step': int(step), 'kind': kind}
    row |= {name: _plain(name, value) for name, value in values.items()}
    line = json.dumps(
      {name: _strict(value) for name, value in row.items()}, allow_nan=False
    )
    self._waiting.append(line.encode() + b'\n')
    self._append()
    for logger in self._loggers:
      logger.write(row)

  def rewind(self, stage: str, step: int) -> None:
    """Forgets what came after `step` of `stage`, where training resumes.

    Drops rows of `stage` whose step is greater than `step` (-1: all of them),
    and all rows of stages that began later in the file. Rows that stay keep
    their bytes. The file is replaced in one move: a crash leaves the old one or
    the new one.
    """
    order: list[str] = []

    def stays(row_stage: str, row_step: int) -> bool:
      if row_stage not in order:
        order.append(row_stage)
      if row_stage == stage:
        return row_step <= step
      return stage not in order or order.index(row_stage) < order.index(stage)

    self._keep(stays)
    for logger in self._loggers:
      logger.rewind(stage, step)

  def rows(self, stage: str) -> list[dict[str, Any]]:
    """The rows of a stage as they were given to `write`, in order."""
    lines = [*self._path.read_bytes().splitlines(), *self._waiting]
    rows = [
      {k: _loose(v) for k, v in json.loads(line).items()} for line in lines
    ]
    return [row for row in rows if row['stage'] == stage]

  def sync(self) -> None:
    """Returns when rows will outlive the machine, as what is saved next will.

    All that there is room for are written.
    """
    self._append()
    files.sync(self._path)

  def close(self) -> None:
    """Closes the loggers; the rows are on disk, as far as there is room."""
    self._append()
    if self._waiting:
      _log.error(f'{self._path}: {len(self._waiting)} rows found no room')
    for logger in self._loggers:
      logger.close()

  def _append(self) -> None:
    """Writes the rows that wait, or none of them when the disk is full."""
    if not self._waiting:
      return
    whole = self._path.stat().st_size
    try:
      # Opened per row, so that none waits in a buffer and a run that fails has
      # nothing to close.
      with self._path.open('ab') as file:
        file.write(b''.join(self._waiting))
    except OSError as error:
      if not is_disk_full(error):
        raise
      os.truncate(self._path, whole)
      if not self._warned:
        _log.error(
          f'{self._path}: the disk is full; rows wait, training goes on'
        )
      self._warned = True
      return
    self._waiting = []

  def _keep(self, stays: Callable[[str, int], bool]) -> None:
    """Rewrites the file with the whole rows for which `stays(stage, step)`."""
    old = self._path.read_bytes()
    whole = old[: old.rfind(b'\n') + 1].splitlines(keepends=True)
    kept = []
    for number, line in enumerate(whole, start=1):
      try:
        row = json.loads(line)
        if stays(row['stage'], row['step']):
          kept.append(line)
      except (ValueError, KeyError, TypeError) as error:
        raise WrongInputError(
          f'{self._path}:{number}: expected a JSON object with stage and step, '
          f'got {line[:60]!r}; mend or delete the line'
        ) from error
    new = b''.join(kept)
    if new == old:
      return
    temporary = self._path.with_suffix('.jsonl.tmp')
    with temporary.open('wb') as file:
      file.write(new)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, self._path)


def _plain(name: str, value: Any) -> str | bool | int | float:
  """A value as JSON's own types; arrays of one number become that number."""
  if isinstance(value, str | bool | int | float):
    return value
  try:
    return float(value)
  except (TypeError, ValueError) as error:
    raise ValueError(
      f'metric {name!r} must be a string or one number, got {value!r:.60}; '
      'reduce it before it is logged'
    ) from error


def _loose(value: Any) -> Any:
  """What `_strict` took."""
  return float(value) if value in ('nan', 'inf', '-inf') else value


def _strict(value: Any) -> Any:
  """Non-finite floats as strings, everything else as it is."""
  finite = not isinstance(value, float) or math.isfinite(value)
  return value if finite else str(value)
