"""The one record that every source yields."""

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
