"""What a reward function reads and returns."""

from collections.abc import Callable, Mapping, Sequence
import math
from typing import Any, NamedTuple

Example = Any  # `jopd.data.examples.Example`; rewards do not import data


class Response(NamedTuple):
  """A response to an example, as a reward function reads it.

  Attributes:
    text: special tokens left out.
    ids: its tokens, the stop token included.
    prompt: the chat messages that the model read.
    end_reason: 'stop' or 'length'.
  """

  text: str
  ids: Sequence[int] = ()
  prompt: Sequence[Mapping[str, str]] = ()
  end_reason: str = 'stop'


class Reward(NamedTuple):
  """What a response earned.

  Attributes:
    value: the sum of the parts; NaN if the example cannot be graded.
    parts: name -> value, of a reward function that returns named parts.
    judged: False if there was no verdict; then the value is 0.
  """

  value: float
  parts: Mapping[str, float] = {}
  judged: bool = True


class NoVerdictError(Exception):
  """A reward function reached no verdict, for example in its time."""


RewardFunction = Callable[
  [Response, Example], float | Mapping[str, float] | None
]


def grade(
  reward_function: RewardFunction, response: Response, example: Example
) -> Reward:
  """The reward of a response.

  Args:
    reward_function: (response, example) -> a number, or named parts that are
      summed, or None for an example that it cannot grade, such as one without
      an answer. It may raise `NoVerdictError`: the response earns 0 and is
      counted.
    response: what was written.
    example: the task, with all columns of its row.

  Raises: ValueError for a value that is not finite.

  Example:
    >>> parts = lambda response, example: {'right': 1.0, 'short': 0.5}
    >>> grade(parts, Response('4'), example=None).value
    1.5
  """
  try:
    result = reward_function(response, example)
  except NoVerdictError:
    return Reward(0.0, judged=False)
  if result is None:
    return Reward(math.nan)
  parts = {}
  if isinstance(result, Mapping):
    parts = {name: float(value) for name, value in result.items()}
    result = sum(parts.values())
  value = float(result)
  if not math.isfinite(value):
    raise ValueError(
      f'the reward of example {example.id} is {parts or value}; return finite'
      ' numbers, or None for an example that cannot be graded'
    )
  return Reward(value, parts)
