"""Accuracy of a policy: greedy, avg@k and pass@k, with intervals."""

from collections.abc import Callable

import jax
import numpy as np

from jopd import statistics
from jopd.data.batching import PromptBatch
from jopd.data.examples import Example
from jopd.rollout.engine import decode
from jopd.rollout.sampler import Rollout


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
    `evaluate(params, key) -> dict` of floats: greedy_accuracy with _low and
    _high (Wilson, 95 %), response_length (tokens) and truncated (share of
    rows) of the greedy responses; with samples = n also avg_at_n with _low
    and _high (prompts are the independent unit) and pass_at_k for k = 1, 2, 4,
    ... n (unbiased).

  """
  count = len(prompts.examples)
  # The last batch is filled up with rows that are thrown away again.
  rows = np.arange(-(-count // batch_size) * batch_size) % count

  def run(params, key, **settings):
    """Rewards, lengths and truncation of one response to every prompt."""
    outcomes = []
    for start in range(0, len(rows), batch_size):
      part = slice(start, start + batch_size)
      rollout = jax.device_get(
        generate(
          params,
          prompts.prompt[rows[part]],
          prompts.prompt_length[rows[part]],
          jax.random.fold_in(key, start),
          **settings,
        )
      )
      texts = decode(tokenizer, rollout)
      rewards = [
        grade(text, prompts.examples[i])
        for text, i in zip(texts, rows[part], strict=True)
      ]
      outcomes.append(
        np.stack([rewards, rollout.response_length, ~rollout.stopped])
      )
    return np.concatenate(outcomes, axis=1)[:, :count]

  def evaluate(params, key) -> dict[str, float]:
    reward, tokens, cut = run(params, key, temperature=0.0)
    right = int(np.sum(reward == 1))
    low, high = statistics.wilson_interval(right, count)
    result = dict(
      greedy_accuracy=right / count,
      greedy_accuracy_low=low,
      greedy_accuracy_high=high,
      response_length=float(np.mean(tokens)),
      truncated=float(np.mean(cut)),
    )
    if samples:
      right = np.stack(
        [
          run(
            params,
            jax.random.fold_in(key, 1 + i),
            temperature=temperature,
            top_p=top_p,
          )[0]
          == 1
          for i in range(samples)
        ]
      )
      result |= _sampled(right.sum(axis=0), samples)
    return {name: float(value) for name, value in result.items()}

  return evaluate


def _sampled(correct: np.ndarray, samples: int) -> dict[str, float]:
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
