"""Rows of published datasets: Parquet and JSON Lines, local or on the hub."""

from collections.abc import Sequence
import json
from pathlib import Path

from jopd.data.examples import Rejected

_SUFFIXES = ('.parquet', '.jsonl')


def read(
  path: str | Path,
  pattern: str,
  columns: Sequence[str],
  *,
  revision: str | None = None,
  once: tuple[str, str] | None = None,
) -> list[dict | Rejected]:
  """The rows of a dataset's files, in the order of their names.

  Args:
    path: a folder or a file; otherwise the name of a dataset on the Hugging
      Face hub, 'owner/name', whose files are downloaded if they are not in its
      cache. No code of a dataset is run.
    pattern: which files of the folder, at any depth: 'main/train-*'.
    columns: those that a row must have; all are read.
    revision: of the hub: a branch, a tag or a commit.
    once: (column, field) of a struct: of rows with the same value only the
      first is read.

  Returns:
    Rows as dictionaries, with None where a value is missing. A line that is not
    JSON or lacks a column, and text that is not UTF-8, is `Rejected`.

  Raises: ValueError when there are no such files, or one is not whole or lacks
    a column.
  """
  path = Path(path)
  if path.is_file():
    files = [path]
  else:
    folder = path if path.is_dir() else _download(str(path), pattern, revision)
    files = sorted(f for f in folder.rglob(pattern) if f.suffix in _SUFFIXES)
    if not files:
      raise ValueError(
        f'{folder} has no {" or ".join(_SUFFIXES)} file like {pattern}'
      )
  rows, seen = [], set()
  for file in files:
    parse = _parquet if file.suffix == '.parquet' else _jsonl
    for row in parse(file, list(columns), once):
      if once and not isinstance(row, Rejected):
        key = _key(row, once)
        if key in seen:
          continue
        seen.add(key)
      rows.append(row)
  return rows


def _download(name: str, pattern: str, revision: str | None) -> Path:
  """The folder in which the cache of the hub holds a dataset's files."""
  import huggingface_hub

  try:
    folder = huggingface_hub.snapshot_download(
      name,
      repo_type='dataset',
      revision=revision,
      allow_patterns=[f'*{pattern}'],
    )
  except Exception as error:  # whatever a network can do
    raise ValueError(
      f'{name!r} is no folder here, and the hub did not give it:'
      f' {" ".join(str(error).split()):.200}; where there is a network, run'
      f' hf download --repo-type=dataset {name} --local-dir=DIR, and set'
      ' path=DIR'
    ) from error
  return Path(folder)


def _key(row: dict, once: tuple[str, str]) -> str:
  """The value that is read once; the row itself if it has no such value."""
  struct = row[once[0]]
  return repr(struct.get(once[1]) if isinstance(struct, dict) else row)


def _parquet(file: Path, columns: list[str], once) -> list[dict | Rejected]:
  import pyarrow
  from pyarrow import parquet
  import pyarrow.compute

  try:
    names = parquet.read_schema(file).names
    _check_columns(file, columns, names)
    table = parquet.read_table(file)
  except (pyarrow.ArrowException, OSError) as error:
    raise ValueError(f'{file} is no whole Parquet file: {error}') from error
  if once:
    # Rows become Python objects, slowly, only once they are chosen.
    keys = pyarrow.compute.struct_field(table[once[0]], once[1]).to_pylist()
    first = {}
    for row, key in enumerate(keys):
      first.setdefault(key, row)
    table = table.take(list(first.values()))
  try:
    return table.to_pylist()
  except UnicodeDecodeError:
    return [_row(file, table, place) for place in range(len(table))]


def _row(file: Path, table, place: int) -> dict | Rejected:
  try:
    return table.slice(place, 1).to_pylist()[0]
  except UnicodeDecodeError as error:
    return Rejected(f'{file}, row {place + 1}: not UTF-8 ({error.reason})')


def _jsonl(file: Path, columns: list[str], once) -> list[dict | Rejected]:
  del once
  rows = []
  for number, line in enumerate(file.read_bytes().splitlines(), 1):
    if line.strip():
      try:
        row = json.loads(line)
        _check_columns('the row', columns, row)
        rows.append(row)
      except (ValueError, TypeError, RecursionError) as error:
        text = line.decode('utf-8', 'backslashreplace')
        rows.append(Rejected(f'{file}, line {number}: {error}', text))
  return rows


def _check_columns(where, columns: list[str], present) -> None:
  if not isinstance(present, list | dict):
    raise ValueError(f'{where} is no JSON object')
  if missing := [name for name in columns if name not in present]:
    raise ValueError(
      f'{where} has no column {", ".join(missing)}; it has'
      f' {", ".join(sorted(present))}'
    )
