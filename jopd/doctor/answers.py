"""How well models answer: from the prompt, and from the student's own text."""

from collections.abc import Callable
import math
from typing import NamedTuple

from jaxtyping import Bool, Float, Int
import numpy as np

from jopd.data.batching import PromptBatch
from jopd.data.examples import Example
from jopd.evaluate import statistics
from jopd.rewards import Response, Reward
from jopd.rollout.continuous_batching import STOP
from jopd.rollout.engine import responses


class Answers(NamedTuple):
  """Graded responses, on the host.

  Attributes:
    response: [B, T] ids, 0 beyond the length.
    response_length: [B].
    truncated: [B], True where no stop ended it.
    reward: [B]; NaN where there is no reference.
  """

  response: Int[np.ndarray, 'B T']
  response_length: Int[np.ndarray, ' B']
  truncated: Bool[np.ndarray, ' B']
  reward: Float[np.ndarray, ' B']

  @property
  def right(self) -> int:
    """How many earn 1."""
    return int(np.sum(self.reward == 1))

  @property
  def graded(self) -> int:
    """How many have a reference."""
    return int(np.sum(~np.isnan(self.reward)))

  @property
  def accuracy(self) -> float:
    """Share that is right, of those that are graded; NaN of none."""
    return self.right / self.graded if self.graded else math.nan


def graded(
  rollout,
  prompts: PromptBatch,
  reward: Callable[[Response, Example], Reward],
  tokenizer,
  *,
  prefix: Answers | None = None,
  prefix_length: Int[np.ndarray, ' B'] | None = None,
) -> Answers:
  """A rollout as graded responses.

  Args:
    rollout: of `rollout.engine.make_generate`, on the host.
    prompts: B, that were asked.
    reward: of a response to an example.
    tokenizer: decodes.
    prefix: the responses that were continued: their first `prefix_length`
      tokens stand before the rollout's, and are graded with them.
    prefix_length: [B].
  """
  response, length = rollout.response, rollout.response_length
  if prefix is not None:
    room = response.shape[1]
    rows = [
      np.concatenate([old[:n], new])[:room]
      for old, n, new in zip(
        prefix.response, prefix_length, response, strict=True
      )
    ]
    response, length = np.stack(rows), prefix_length + length
  rollout = rollout._replace(response=response, response_length=length)
  rewards = [
    reward(response, example).value
    for response, example in zip(
      responses(tokenizer, rollout, prompts.messages),
      prompts.examples,
      strict=True,
    )
  ]
  return Answers(response, length, rollout.end != STOP, np.array(rewards))


def cut(
  prompt: Int[np.ndarray, 'B P'],
  prompt_length: Int[np.ndarray, ' B'],
  answers: Answers,
  share: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Prompts that go on with the first tokens of a response.

  Args:
    prompt: [B, P] ids, right-padded.
    prompt_length: [B].
    answers: whose responses are cut.
    share: of each response, below 1, rounded down: never its stop token.

  Returns:
    prompt [B, P + T] and prompt_length [B], the response's first tokens
    included, and how many those are, [B].
  """
  kept = (share * answers.response_length).astype(np.int32)
  wide = np.pad(prompt, ((0, 0), (0, answers.response.shape[1])))
  for row, start, n, response in zip(
    wide, prompt_length, kept, answers.response, strict=True
  ):
    row[start : start + n] = response[:n]
  return wide, (prompt_length + kept).astype(np.int32), kept


def difference(first: Answers, second: Answers) -> tuple[float, float, float]:
  """Accuracy of the first minus that of the second, with a 95 % interval.

  Newcombe's interval, of Wilson's two: unlike the normal one it has a width
  when all or none are right.

  Returns:
    (difference, low, high); NaN where one was not graded.

  References: R. G. Newcombe, Statistics in Medicine 17 (1998) 873-890, method
    10.
  """
  if not (first.graded and second.graded):
    return math.nan, math.nan, math.nan
  p, q = first.accuracy, second.accuracy
  p_low, p_high = statistics.wilson_interval(first.right, first.graded)
  q_low, q_high = statistics.wilson_interval(second.right, second.graded)
  return (
    p - q,
    p - q - math.hypot(p - p_low, q_high - q),
    p - q + math.hypot(p_high - p, q - q_low),
  )


def kept_headroom(
  from_prompt: float, from_prefix: float, student: float
) -> float:
  """What is left of a teacher's headroom on the student's own text.

  (from_prefix - student) / (from_prompt - student). The teacher completes what
  the student began: 1 where it answers as well as from the prompt, 0 where no
  more than what the student's own completions get is to be had.

  Args:
    from_prompt: accuracy of the teacher alone.
    from_prefix: accuracy of what the student began and the teacher completed.
    student: accuracy of the very responses that the prefixes are cut from.

  Returns:
    The share; NaN without headroom.

  References: Li et al., Rethinking On-Policy Distillation, arXiv 2604.13016,
    section 4.6: the gain over the student is .37, .27, .15, .02 after 1, 4, 8,
    16 thousand tokens, and training at such lengths begins to collapse.

  Example:
    >>> kept_headroom(0.75, 0.375, 0.25)
    0.25
  """
  headroom = from_prompt - student
  return (from_prefix - student) / headroom if headroom > 0 else math.nan
