"""Rows that a run leaves out: counted, written down, too many of them refused.

Which rows they are follows from the data and the settings alone, so that every
process leaves out the same ones, and a run that resumes does so again.
"""

from collections.abc import Callable, Mapping, Sequence
import json
import logging
import os
from pathlib import Path

from jopd.data.examples import Example, Rejected, Unfit

_log = logging.getLogger(__name__)
_TEXT = 200  # characters of a row that are kept


class Quarantine:
  """The rows that are left out, of all sources of a run.

  Args:
    max_bad_row_fraction: largest share of bad rows in one source, from 0 to 1.
    path: of the JSON Lines file for them. None: they are told and not kept.
  """

  def __init__(
    self, max_bad_row_fraction: float, path: str | os.PathLike | None = None
  ):
    self.max_bad_row_fraction = max_bad_row_fraction
    self.path = path and Path(path)
    # Two stages of one source leave out the same rows; each is kept once.
    self._rows: dict[str, None] = {}

  def sieve(self, spec) -> 'Sieve':
    """The sieve of one source.

    Args:
      spec: what it is called: a text, or its settings.
    """
    return Sieve(self, _called(spec))

  def add(self, **row) -> None:
    """Keeps a row: source, row, id, reason, bad, text."""
    self._rows[json.dumps(row)] = None

  def write(self) -> None:
    """Writes the file anew, whole or not at all; none where nothing is bad."""
    if self.path is None or not (self._rows or self.path.exists()):
      return
    self.path.parent.mkdir(parents=True, exist_ok=True)
    temporary = self.path.with_suffix('.tmp')
    text = ''.join(f'{row}\n' for row in self._rows)
    temporary.write_text(text, encoding='utf-8')
    os.replace(temporary, self.path)


class Sieve:
  """Parts the rows of one source; made by `Quarantine.sieve`.

  Attributes:
    source: what the source is called.
  """

  def __init__(self, quarantine: Quarantine, source: str):
    self._quarantine = quarantine
    self.source = source
    self._places: Sequence[int] = ()  # of the examples, among the rows
    self._examples: Sequence[Example] = ()
    self._count, self._bad, self._first_unfit = 0, [], ''
    self._told = 0

  def sift(
    self,
    rows: Sequence[Example | Rejected],
    check: Callable[[Example], None] = lambda example: None,
    *,
    most: int | None = None,
  ) -> Sequence[Example]:
    """The examples among the rows that pass a check; every row is read once.

    Args:
      rows: of a source.
      check: raises ValueError for an example that is bad, and `Unfit` for one
        that is only of no use.
      most: examples are enough; the rows behind them are not read.

    Returns:
      The rows themselves where all are good, else a view of those that are, so
      that lazy rows stay lazy. An id that was seen before makes a row bad.

    Raises: ValueError when too many are bad, or none is good.
    """
    good, seen = [], set()
    for place, row in enumerate(rows):
      if len(good) == most:
        break
      self._count += 1
      if isinstance(row, Example):
        row = _checked(row, check, seen)
      if isinstance(row, Rejected):
        self._keep(row.row or place + 1, row)
      else:
        good.append(place)
    self.judge()
    if not good:
      first = self._first_unfit or 'it has none'
      raise ValueError(f'{self.source}: no row can be used: {first}')
    self._places = good
    everything = len(good) == len(rows)
    self._examples = rows if everything else _View(rows, good)
    return self._examples

  def reject(self, index: int, error: ValueError) -> None:
    """Leaves out an example that `sift` has let pass, for a later reason."""
    row = _rejected(self._examples[index], error)
    self._keep(row.row or self._places[index] + 1, row)

  def judge(self) -> None:
    """Tells of new bad rows. Raises: ValueError when they are too many."""
    if len(self._bad) == self._told:
      return
    self._told = len(self._bad)
    bad, count, limit = (
      self._bad,
      self._count,
      self._quarantine.max_bad_row_fraction,
    )
    found = (
      f'{self.source}: {len(bad)} of {count} rows are bad'
      f' ({len(bad) / count:.1%})'
    )
    path = self._quarantine.path
    where = f'; all are in {path}' if path else ''
    if len(bad) > limit * count or len(bad) == count:
      raise ValueError(
        f'{found}, more than max_bad_row_fraction = {limit:.1%}: {self._first()};'
        f' repair them, name other fields, or allow more{where}'
      )
    _log.warning('%s and left out: %s%s', found, self._first(), where)

  def _first(self) -> str:
    return '; '.join(self._bad[:3])

  def _keep(self, number: int, row: Rejected) -> None:
    told = f'row {number}: {row.reason}'
    if row.bad:
      self._bad.append(told)
    else:
      self._first_unfit = self._first_unfit or told
    self._quarantine.add(
      source=self.source,
      row=number,
      reason=row.reason,
      bad=row.bad,
      text=row.text[:_TEXT],
    )


class _View(Sequence):
  """Those of the rows that stand in some places."""

  def __init__(self, rows: Sequence[Example | Rejected], places: Sequence[int]):
    self._rows, self._places = rows, places

  def __len__(self) -> int:
    return len(self._places)

  def __getitem__(self, index):
    picked = self._places[index]
    if isinstance(picked, int):
      return self._rows[picked]
    return [self._rows[place] for place in picked]


def _called(spec) -> str:
  """The file, folder or name of a source."""
  if not isinstance(spec, Mapping) and not hasattr(spec, 'keys'):
    return str(spec)
  name = spec.get('path') or spec.get('name_or_dir') or spec['name']
  return f'{name} ({spec["split"]})' if 'split' in spec else str(name)


def _checked(example: Example, check, seen: set) -> Example | Rejected:
  try:
    if example.id in seen:
      raise ValueError('its id was seen before')
    check(example)
  except ValueError as error:
    return _rejected(example, error)
  seen.add(example.id)
  return example


def _rejected(example: Example, error: ValueError) -> Rejected:
  text = example.messages[-1]['content'] if example.messages else ''
  reason = f'example {example.id}: {error}'
  return Rejected(reason, text, example.row, not isinstance(error, Unfit))
