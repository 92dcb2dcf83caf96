"""What commands write beside their results: log lines, and new JSONL files."""

from collections.abc import Iterator
import contextlib
import json
import logging
import pathlib
import sys

from tqdm import tqdm

from jopd.compilation import cache_compilations
from jopd.run.config import ConfigError


class _AboveProgressBar(logging.Handler):
  """Writes log lines to standard error, above any progress bar."""

  def emit(self, record):
    level = '' if record.levelno == logging.INFO else record.levelname.lower()
    tqdm.write(
      level + ': ' * bool(level) + record.getMessage(), file=sys.stderr
    )


def prepare() -> None:
  """Shows the log of jopd, and keeps compiled programs on disk."""
  log = logging.getLogger('jopd')
  log.handlers = [_AboveProgressBar()]
  log.setLevel(logging.INFO)
  log.propagate = False  # or a handler of a library repeats each line
  cache_compilations()


def check_new_file(path: str | None) -> None:
  """Refuses an --output that exists or has no folder, before any work."""
  output = pathlib.Path(path or '')
  if path and output.exists():
    raise ConfigError(f'--output={output} exists: remove it, or name another')
  if path and not output.parent.is_dir():
    raise ConfigError(f'--output={output}: {output.parent} is not a folder')


@contextlib.contextmanager
def new_file(path: str | None) -> Iterator:
  """The file of --output, which must be new; without one, standard output."""
  if not path:
    yield sys.stdout
    return
  with open(path, 'x', encoding='utf-8') as out:
    yield out


def write_row(out, row: dict) -> None:
  """Writes one line of JSON and flushes it, so that rows are whole."""
  out.write(json.dumps(row) + '\n')
  out.flush()
