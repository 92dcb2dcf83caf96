"""Examples, rejected rows, and lazy sequences of both."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import NamedTuple


class Example(NamedTuple):
  """One task for the student.

  Attributes:
    id: name of the example, unique within its source.
    messages: chat turns, each `{'role': str, 'content': str}`, up to and
      including the user turn that the student answers. Treat as read-only:
      sources may hand out the same list twice.
    answer: short reference that a reward compares with, or None.
    response: reference demonstration (what SFT learns), or None.
    row: number of its row in the source, from 1, where that is not its place
      among the examples; else 0.
    domain: what it is about, where several are mixed; terms may ask for it.
    columns: all columns of its row, by name.
  """

  id: str
  messages: list[dict]
  answer: str | None = None
  response: str | None = None
  row: int = 0
  domain: str = ''
  columns: Mapping[str, object] = {}


class Rejected(NamedTuple):
  """A row that cannot be an example, in its place among the examples.

  Attributes:
    reason: what is wrong with it.
    text: the row, or its beginning.
    row: as in `Example`.
    bad: False for a row that is whole and cannot be used: one without an
      answer where a dataset is known to have such rows, one that is too long.
  """

  reason: str
  text: str = ''
  row: int = 0
  bad: bool = True


class Unfit(ValueError):
  """An example is whole and cannot be used; `Rejected.bad` becomes False."""


class ScoredResponse(NamedTuple):
  """A response to an example, as rollout contexts read it.

  Attributes:
    text: of the response, special tokens left out.
    reward: None if the example cannot be graded.
    source: 'student', 'dataset', or the role of a teacher.
    end_reason: 'stop' or 'length'.
  """

  text: str
  reward: float | None
  source: str = 'student'
  end_reason: str = 'stop'


@dataclasses.dataclass(frozen=True)
class Lazy(Sequence):
  """`size` rows, each made by `make(index)` when it is read."""

  size: int
  make: Callable[[int], Example | Rejected]

  def __len__(self) -> int:
    return self.size

  def __getitem__(self, index):
    # A range applies the rules of slices, negative and missing indices.
    selected = range(self.size)[index]
    if isinstance(selected, range):
      return [self.make(i) for i in selected]
    return self.make(selected)
