"""Accuracy of a policy: greedy, avg@n and pass@k, with intervals."""

from collections.abc import Callable
import sys

import jax
import numpy as np
from tqdm import tqdm

from jopd import sharding
from jopd.data.batching import PromptBatch
from jopd.data.examples import Example
from jopd.evaluate import statistics
from jopd.rewards import Response, Reward
from jopd.rollout.continuous_batching import STOP
from jopd.rollout.engine import responses
from jopd.rollout.sampler import Rollout

# Least batches of rows per call. The last rows of a call wait for the longest,
# so long calls use the slots better.
_MIN_BATCHES = 4


def make_evaluate(
  generate: Callable[..., Rollout],
  tokenizer,
  reward: Callable[[Response, Example], Reward],
  prompts: PromptBatch,
  *,
  batch_size: int,
  samples: int,
  temperature: float = 1.0,
  top_p: float = 1.0,
  record: Callable[[dict], None] | None = None,
):
  """A function from parameters to the accuracy on fixed prompts.

  Each prompt gets one greedy response and `samples` sampled ones. The results
  do not depend on batch_size: the key of a response depends on the index of
  its prompt.

  Args:
    generate: from `rollout.engine.make_generate` with `stops` bound, for groups
      of 1 + samples and max_num_seqs = batch_size.
    tokenizer: decodes responses.
    reward: (response, example) -> reward, such as `partial(rewards.grade,
      rewards.exact_match)`. A response is correct if its value is 1.
    prompts: from `data.batching.encode_batch`.
    batch_size: rows decoded at a time. A call has a multiple of batch_size
      prompts, and usually at least 4 * batch_size rows.
    samples: responses per prompt for avg@k and pass@k; 0 for greedy only.
    temperature: of those samples.
    top_p: of those samples.
    record: called with each response that this process grades, a dictionary of
      id, sample (0 is greedy), text, reward, response_length and truncated.

  Returns:
    `evaluate(params, key) -> dict` of numbers: prompts (count); of the greedy
    responses greedy_accuracy with _low and _high (Wilson, 95 %),
    response_length (mean tokens) and truncated (share of rows without a stop);
    with samples = n also avg_at_n and the unbiased pass_at_k for k = 1, 2, 4,
    ... and n, each with _low and _high (over prompts).
  """
  count, group = len(prompts.examples), 1 + samples
  size = batch_size * _batches_per_call(-(-count // batch_size), group)
  # The last call is padded with prompts whose results are dropped.
  indices = np.arange(-(-count // size) * size) % count

  def respond(params, key, start):
    """Reward, length and truncation of responses, [processes, 3, rows]."""
    # Each process samples and grades its part of the call.
    positions = np.split(np.arange(start, start + size), jax.process_count())
    positions = positions[jax.process_index()]
    part = indices[positions]
    rollout = sharding.local_rows(
      generate(
        params,
        prompts.prompt[part],
        prompts.prompt_length[part],
        key,
        first_row=start * group,
        temperature=np.tile([0.0] + [temperature] * samples, len(part)),
        top_p=top_p,
      )
    )
    rows = np.repeat(part, group)
    graded = responses(tokenizer, rollout, [prompts.messages[i] for i in rows])
    rewards = [
      reward(response, prompts.examples[i]).value
      for response, i in zip(graded, rows, strict=True)
    ]
    measured = (rewards, rollout.response_length, rollout.end_reason != STOP)
    if record:
      real = np.count_nonzero(positions < count) * group
      for row, (response, *values) in enumerate(
        zip(graded[:real], *measured, strict=False)
      ):
        example = prompts.examples[part[row // group]]
        record(_row(example.id, row % group, response.text, *values))
    return sharding.from_hosts(np.stack(measured))

  def evaluate(params, key) -> dict[str, float | int]:
    outcomes = []
    for start in _progress(range(0, len(indices), size)):
      outcomes.extend(respond(params, key, start))
    outcomes = np.concatenate(outcomes, axis=1).reshape(3, -1, group)[:, :count]
    result = {'prompts': count, **_greedy(*outcomes[..., 0])}
    if samples:
      correct = np.sum(outcomes[0, :, 1:] == 1, axis=1)
      result |= _sampled(correct, samples)
    return result

  return evaluate


def _row(id: str, sample: int, text: str, reward, length, truncated) -> dict:
  """One graded response, as plain JSON."""
  return dict(
    id=id,
    sample=sample,
    text=text,
    reward=float(reward),
    response_length=int(length),
    truncated=bool(truncated),
  )


def _batches_per_call(batches: int, group: int) -> int:
  """Batches of prompts per call, for long calls of similar size."""
  calls = -(-batches // max(1, _MIN_BATCHES // group))
  return -(-batches // calls)


def _progress(calls: range) -> tqdm:
  """A progress bar for evaluations of more than two seconds."""
  interval = 0.1 if sys.stderr.isatty() else 30.0
  return tqdm(
    calls,
    desc='evaluation',
    unit='call',
    leave=False,
    delay=2.0,
    mininterval=interval,
  )


def _greedy(rewards, lengths, truncated) -> dict[str, float]:
  """Accuracy and mean length of one response per prompt."""
  correct, count = int(np.sum(rewards == 1)), len(rewards)
  low, high = statistics.wilson_interval(correct, count)
  return {
    'greedy_accuracy': correct / count,
    'greedy_accuracy_low': low,
    'greedy_accuracy_high': high,
    'response_length': float(np.mean(lengths)),
    'truncated': float(np.mean(truncated)),
  }


def _sampled(correct: np.ndarray, samples: int) -> dict[str, float]:
  """avg@n and pass@k from the number of correct samples of each prompt."""
  ks = [2**i for i in range(samples.bit_length()) if 2**i < samples]
  rates = {f'avg_at_{samples}': correct / samples} | {
    f'pass_at_{k}': statistics.pass_at_k(samples, correct, k)
    for k in (*ks, samples)
  }
  result = {}
  for name, values in rates.items():
    mean, low, high = statistics.mean_interval(values)
    result |= {name: mean, f'{name}_low': low, f'{name}_high': high}
  return result
