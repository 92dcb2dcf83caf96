"""Rows that a run cannot use: left out, written down, refused if too many.

Which rows these are follows from the data and the settings alone, so that every
process leaves out the same ones, and a run that resumes does so again.
"""

from collections.abc import Callable, Mapping, Sequence
import json
import logging
import os
from pathlib import Path

from jopd.data.examples import Example, Lazy, Rejected, Unfit

_log = logging.getLogger(__name__)
_MAX_TEXT = 200  # characters of a row that are written


class RejectedRows:
  """The rows that are left out, of all sources of a run.

  Args:
    max_bad_row_fraction: largest fraction of bad rows in one source.
    path: JSON Lines file for these rows; None writes nothing.
  """

  def __init__(
    self, max_bad_row_fraction: float, path: str | os.PathLike | None = None
  ):
    self.max_bad_row_fraction = max_bad_row_fraction
    self.path = path and Path(path)
    # Two stages of one source leave out the same rows; each is written once.
    self._lines: dict[str, None] = {}

  def add(self, **row) -> None:
    """Adds a row: source, row, reason, bad, text."""
    self._lines[json.dumps(row)] = None

  def write(self) -> None:
    """Writes the file anew, whole or not at all; none without rows."""
    if self.path is None or not (self._lines or self.path.exists()):
      return
    self.path.parent.mkdir(parents=True, exist_ok=True)
    temporary = self.path.with_suffix('.tmp')
    text = ''.join(f'{line}\n' for line in self._lines)
    temporary.write_text(text, encoding='utf-8')
    os.replace(temporary, self.path)


class RowFilter:
  """Selects the rows of one source that a run can use.

  Args:
    rejected: of the run; takes the rows that are left out.
    spec: of the source: a text, or its settings.
  """

  def __init__(self, rejected: RejectedRows, spec):
    self._rejected = rejected
    self._source = _source_name(spec)
    self._kept: list[int] = []  # indices of the examples, among the rows
    self._examples: Sequence[Example] = ()
    self._num_rows, self._bad, self._unfit = 0, [], ''
    self._reported = 0  # bad rows

  def select(
    self,
    rows: Sequence[Example | Rejected],
    check: Callable[[Example], None] = lambda example: None,
    *,
    count: int | None = None,
  ) -> Sequence[Example]:
    """The examples among the rows that pass a check; reads every row once.

    Args:
      rows: of the source.
      check: raises ValueError for an example that is bad, and `Unfit` for one
        that is whole and cannot be used.
      count: stops after as many examples.

    Returns:
      The rows themselves if all are good, else a view of the good ones, so that
      lazy rows stay lazy. A row with the id of an earlier one is bad.

    Raises: ValueError when too many rows are bad, or none is good.
    """
    kept, ids = [], set()
    for index, row in enumerate(rows):
      if len(kept) == count:
        break
      self._num_rows += 1
      if isinstance(row, Example):
        try:
          if row.id in ids:
            raise ValueError('its id was seen before')
          check(row)
        except ValueError as error:
          row = _as_rejected(row, error)
        else:
          ids.add(row.id)
          kept.append(index)
      if isinstance(row, Rejected):
        self._add(row.row or index + 1, row)
    self.check_fraction()
    if not kept:
      reason = self._unfit or 'it has none'
      raise ValueError(f'{self._source}: no row can be used: {reason}')
    self._kept = kept
    all_kept = len(kept) == len(rows)
    self._examples = (
      rows if all_kept else Lazy(len(kept), lambda i: rows[kept[i]])
    )
    return self._examples

  def reject(self, index: int, error: ValueError) -> None:
    """Leaves out an example that `select` returned; `index` is its place."""
    row = _as_rejected(self._examples[index], error)
    self._add(row.row or self._kept[index] + 1, row)

  def check_fraction(self) -> None:
    """Logs new bad rows. Raises: ValueError when they are too many."""
    count = len(self._bad)
    if count == self._reported:
      return
    self._reported = count
    limit, path = self._rejected.max_bad_row_fraction, self._rejected.path
    summary = (
      f'{self._source}: {count} of {self._num_rows} rows are bad'
      f' ({count / self._num_rows:.1%})'
    )
    first, where = '; '.join(self._bad[:3]), f'; see {path}' if path else ''
    if count > limit * self._num_rows or count == self._num_rows:
      raise ValueError(
        f'{summary}, more than max_bad_row_fraction = {limit:.1%}: {first};'
        f' repair them, name other columns, or raise the fraction{where}'
      )
    _log.warning('%s and left out: %s%s', summary, first, where)

  def _add(self, number: int, row: Rejected) -> None:
    reason = f'row {number}: {row.reason}'
    if row.bad:
      self._bad.append(reason)
    else:
      self._unfit = self._unfit or reason
    self._rejected.add(
      source=self._source,
      row=number,
      reason=row.reason,
      bad=row.bad,
      text=row.text[:_MAX_TEXT],
    )


def _source_name(spec) -> str:
  """The file, folder or name of a source."""
  if not isinstance(spec, Mapping) and not hasattr(spec, 'keys'):
    return str(spec)
  name = spec.get('path') or spec.get('name_or_dir') or spec.get('name', '?')
  return f'{name} ({spec["split"]})' if 'split' in spec else str(name)


def _as_rejected(example: Example, error: ValueError) -> Rejected:
  text = example.messages[-1]['content'] if example.messages else ''
  reason = f'example {example.id}: {error}'
  return Rejected(reason, text, example.row, not isinstance(error, Unfit))
