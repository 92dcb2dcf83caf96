"""The one record that every source yields, and a sequence of them."""

from collections.abc import Callable, Sequence
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
  """

  id: str
  messages: list[dict]
  answer: str | None = None
  response: str | None = None


@dataclasses.dataclass(frozen=True)
class Lazy(Sequence):
  """`size` examples, each made by `make(index)` when it is asked for."""

  size: int
  make: Callable[[int], Example]

  def __len__(self) -> int:
    return self.size

  def __getitem__(self, index):
    # A range knows the rules of slices, negative and missing indices.
    picked = range(self.size)[index]
    if isinstance(picked, range):
      return [self.make(i) for i in picked]
    return self.make(picked)
