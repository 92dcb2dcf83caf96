"""Accuracy of a policy: greedy, avg@k and pass@k, with intervals."""

from collections.abc import Callable
import sys

import jax
import numpy as np
from tqdm import tqdm

from jopd import sharding, statistics
from jopd.data.batching import PromptBatch
from jopd.data.examples import Example
from jopd.rollout.engine import decode
from jopd.rollout.sampler import Rollout
from jopd.rollout.slots import STOP


def make_evaluate(
  generate: Callable[..., Rollout],
  tokenizer,
  grade: Callable[[str, Example], float],
  prompts: PromptBatch,
  *,
  batch_size: int,
  samples: int,
  temperature: float = 1.0,
  top_p: float = 1.0,
):
  """A function from parameters to the accuracy on fixed prompts.

  Args:
    generate: of `rollout.engine.make_generate`.
    tokenizer: decodes responses.
    grade: (response text, example) -> reward; 1 is right.
    prompts: of `data.batching.encode_batch`.
    batch_size: rows decoded at once.
    samples: responses per prompt for avg@k and pass@k; 0 for greedy only.
    temperature: of those samples.
    top_p: of those samples.

  Returns:
    `evaluate(params, key) -> dict` of numbers: prompts (how many);
    greedy_accuracy with _low and _high (Wilson, 95 %), response_length
    (tokens) and truncated (share of rows) of the greedy responses; with
    samples = n also avg_at_n with _low and _high (prompts are the independent
    unit) and pass_at_k for k = 1, 2, 4, ... up to n (unbiased).
  """
  count = len(prompts.examples)
  # The last batch is filled up with rows that are thrown away again.
  rows = np.arange(-(-count // batch_size) * batch_size) % count

  def respond(bar, params, key, **settings):
    """[3, count]: reward, length and truncation of a response per prompt."""
    outcomes = []
    for start in range(0, len(rows), batch_size):
      # Each host answers and grades its part of the batch.
      batch = np.split(rows[start : start + batch_size], jax.process_count())
      part = batch[jax.process_index()]
      rollout = sharding.local_rows(
        generate(
          params,
          prompts.prompt[part],
          prompts.prompt_length[part],
          jax.random.fold_in(key, start),
          **settings,
        )
      )
      texts = decode(tokenizer, rollout)
      rewards = [
        grade(text, prompts.examples[i])
        for text, i in zip(texts, part, strict=True)
      ]
      local = np.stack([rewards, rollout.response_length, rollout.end != STOP])
      outcomes.extend(sharding.from_hosts(local))
      bar.update()
    return np.concatenate(outcomes, axis=1)[:, :count]

  def evaluate(params, key) -> dict[str, float | int]:
    sampled = dict(temperature=temperature, top_p=top_p)
    with _progress((1 + samples) * len(rows) // batch_size) as bar:
      greedy = respond(bar, params, key, temperature=0.0)
      rewards = [
        respond(bar, params, jax.random.fold_in(key, 1 + i), **sampled)[0]
        for i in range(samples)
      ]
    result = {'prompts': count, **_greedy(*greedy)}
    if samples:
      result |= _sampled(np.sum(np.equal(rewards, 1), axis=0), samples)
    return result

  return evaluate


def _progress(batches: int) -> tqdm:
  """A bar for evaluations that take more than a moment, gone at their end."""
  interval = 0.1 if sys.stderr.isatty() else 30.0
  return tqdm(
    total=batches,
    desc='evaluation',
    unit='batch',
    leave=False,
    delay=2.0,
    mininterval=interval,
  )


def _greedy(rewards, lengths, truncated) -> dict[str, float]:
  """Accuracy of one response per prompt, and how long the responses are."""
  right, count = int(np.sum(rewards == 1)), len(rewards)
  low, high = statistics.wilson_interval(right, count)
  return {
    'greedy_accuracy': right / count,
    'greedy_accuracy_low': low,
    'greedy_accuracy_high': high,
    'response_length': float(np.mean(lengths)),
    'truncated': float(np.mean(truncated)),
  }


def _sampled(correct: np.ndarray, samples: int) -> dict[str, float]:
  """avg@n and pass@k from the number of right samples of each prompt."""
  mean, low, high = statistics.mean_interval(correct / samples)
  result = {
    f'avg_at_{samples}': mean,
    f'avg_at_{samples}_low': low,
    f'avg_at_{samples}_high': high,
  }
  k = 1
  while k <= samples:
    result[f'pass_at_{k}'] = float(
      np.mean(statistics.pass_at_k(samples, correct, k))
    )
    k *= 2
  return result
