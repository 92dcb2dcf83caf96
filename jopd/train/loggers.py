"""Loggers: where the rows of a log are shown, beside the log itself.

A logger is `(folder, log) -> Logger`, named by `config.loggers`. It works in
a thread of its own, behind a queue with an end: one that raises, blocks or
cannot be reached costs its own picture of the run, and nothing of the run.
"""

from collections.abc import Callable, Mapping
import logging
import pathlib
import queue
import threading
from typing import Any, Protocol, runtime_checkable

_log = logging.getLogger(__name__)

_WAITING = 1000  # rows that wait for a logger, at most
_LAST = 10.0  # seconds that the end of a stage waits for a logger
_PLACE = ('stage', 'step', 'kind')


@runtime_checkable
class Logger(Protocol):
  """What shows rows; its methods may raise whatever they like, and block."""

  def write(self, row: Mapping[str, Any]) -> None:
    """Shows a row of `MetricsLog`, whose values are numbers and strings."""

  def rewind(self, stage: str, step: int) -> None:
    """Forgets what came after `step` of `stage`, as far as it can."""

  def close(self) -> None:
    """Ends."""


def tensorboard(folder: pathlib.Path, log: str) -> Logger:
  """Event files in `<folder>/tensorboard/<log>/<stage>`, by tensorboardX.

  Without tensorboardX nothing is shown, and nothing said: it is the default.
  """
  return _TensorBoard(folder / 'tensorboard' / log)


def wandb(folder: pathlib.Path, log: str) -> Logger:
  """A run of Weights & Biases per stage and log, in the group of the folder.

  Where it goes, the environment variables of wandb say: WANDB_PROJECT,
  WANDB_MODE=offline (files in `<folder>/wandb`, for `wandb sync`), and others.
  A stage that resumes begins another run in the group.
  """
  return _Wandb(folder, log)


class _TensorBoard:
  """One writer per stage: a stage's steps start at 0 again."""

  def __init__(self, folder: pathlib.Path):
    self._folder = folder
    self._writers: dict[str, Any] = {}
    # Stage -> first step to come. TensorBoard hides older events from there on.
    self._resume: dict[str, int] = {}

  def write(self, row: Mapping[str, Any]) -> None:
    try:
      import tensorboardX  # slow to import, and optional
    except ImportError:
      return
    stage = row['stage']
    if stage not in self._writers:
      self._writers[stage] = tensorboardX.SummaryWriter(
        str(self._folder / stage), purge_step=self._resume.get(stage, 0)
      )
    for name, value in _scalars(row).items():
      self._writers[stage].add_scalar(name, value, row['step'])
    self._writers[stage].flush()

  def rewind(self, stage: str, step: int) -> None:
    self._resume = {stage: step + 1}

  def close(self) -> None:
    for writer in self._writers.values():
      writer.close()


class _Wandb:
  """One run per stage, for the same reason."""

  def __init__(self, folder: pathlib.Path, log: str):
    self._folder, self._log = folder, log
    self._runs: dict[str, Any] = {}

  def write(self, row: Mapping[str, Any]) -> None:
    import wandb  # optional

    stage = row['stage']
    if stage not in self._runs:
      self._runs[stage] = wandb.init(
        dir=str(self._folder),
        group=self._folder.name,
        job_type=self._log,
        name=f'{self._folder.name} {stage} {self._log}',
        reinit='create_new',
      )
    self._runs[stage].log(_scalars(row), step=row['step'])

  def rewind(self, stage: str, step: int) -> None:
    pass

  def close(self) -> None:
    for run in self._runs.values():
      run.finish()


class BackgroundLogger:
  """A logger in a thread of its own; the methods of `Logger`, which return.

  Calls wait in a queue. When the queue is full, rows are dropped and counted;
  when the logger raises, it is not called again. Both are logged once.

  Args:
    make: () -> the logger, called in the thread.
    name: of the logger.
    waiting: rows in the queue, at most.
    last: seconds that `close` waits for the logger.

  Attributes:
    dropped: rows that the logger was not shown.
  """

  def __init__(
    self,
    make: Callable[[], Logger],
    name: str,
    *,
    waiting: int = _WAITING,
    last: float = _LAST,
  ):
    self._name, self._last = name, last
    self.dropped = 0
    self._failed = self._full = False
    self._calls: queue.Queue = queue.Queue(waiting)
    # Daemon: a logger that blocks for ever does not keep the process.
    self._thread = threading.Thread(
      target=self._work, args=[make], name=name, daemon=True
    )
    self._thread.start()

  def write(self, row: Mapping[str, Any]) -> None:
    self._call('write', dict(row))

  def rewind(self, stage: str, step: int) -> None:
    self._call('rewind', stage, step)

  def close(self) -> None:
    """Waits for the logger, a little; says what it was not shown."""
    waiting = self._calls.qsize()
    try:
      self._calls.put(('close',), timeout=self._last)
      self._thread.join(self._last)
    except queue.Full:
      pass
    if self._thread.is_alive():
      self.dropped += waiting
      _log.warning(f'{self._name} does not answer: it is left behind.')
    if self.dropped:
      _log.warning(
        f'{self._name} was not shown {self.dropped} rows; the .jsonl file has'
        ' them all.'
      )

  def _call(self, *call) -> None:
    if self._failed:
      self.dropped += 1
      return
    try:
      self._calls.put_nowait(call)
    except queue.Full:
      self.dropped += 1
      if not self._full:
        _log.warning(f'{self._name} is slower than the run: rows are dropped.')
      self._full = True

  def _work(self, make: Callable[[], Logger]) -> None:
    logger = None
    while True:
      method, *arguments = self._calls.get()
      if not self._failed:
        try:
          logger = logger or make()
          getattr(logger, method)(*arguments)
        except BaseException as error:
          self._failed = True
          self.dropped += method == 'write'
          _log.warning(f'{self._name} stopped ({error!r}); the run goes on.')
      elif method == 'write':
        self.dropped += 1
      if method == 'close':
        return


def _scalars(row: Mapping[str, Any]) -> dict[str, Any]:
  """'<kind>/<name>', or with the model between, -> the numbers of a row."""
  kind = '/'.join([row['kind'], *([row['model']] if 'model' in row else [])])
  return {
    f'{kind}/{name}': value
    for name, value in row.items()
    if name not in _PLACE and not isinstance(value, str)
  }
