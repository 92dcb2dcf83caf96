"""Measures of the student on prompts that are kept apart, as it trains."""

from collections.abc import Callable

import jax
import numpy as np

from jopd import sharding
from jopd.data.batching import PromptBatch
from jopd.rewards import Response
from jopd.rollout.continuous_batching import STOP
from jopd.rollout.engine import decode
from jopd.train.callbacks.base import Callback, Setup, StepContext
from jopd.train.random_streams import HELD_OUT
from jopd.train.stage import Run


def measure_held_out(setup: Setup, *, every: int) -> Callback:
  """Measures the student on the held-out prompts every so many steps.

  Metrics are 'held_out/reward' and so on, see `Setup.measure`.

  Raises: ValueError when every is below 1, or there are no held-out prompts.
  """
  if every < 1:
    raise ValueError(f'every must be at least 1, got {every}')
  if setup.measure is None:
    raise ValueError(
      'there are no held-out prompts: set held_out to a number of examples'
    )

  class MeasureHeldOut(Callback):
    def after_step(self, context: StepContext) -> None:
      if context.step % every == 0:
        shown = setup.measure(
          setup.student(context.state), context.sampling['max_new_tokens']
        )
        context.metrics.update({f'held_out/{n}': x for n, x in shown.items()})

  return MeasureHeldOut()


def make_measure(
  run: Run, student: str, prompts: PromptBatch, stage: str, key: jax.Array
) -> Callable[[dict, int | None], dict[str, float]]:
  """What one sampled response to each held-out prompt shows.

  For decisions while a stage trains: cheaper than an evaluation, and on prompts
  of its own. All are sampled in one call, with the same keys each time:
  two results differ by the parameters alone.

  Args:
    run: of the stage.
    student: name of its model.
    prompts: held out, as many as the mesh divides.
    stage: its name.
    key: of the stage.

  Returns:
    `measure(params, max_new_tokens)`, see `Setup.measure`. The entropy is the
    mean of -log p over all sampled tokens, unbiased as they are sampled from p.
  """
  sharding.check_batch(run.mesh, len(prompts.examples))
  generate = run.make_generate(
    run.make_policy(run.models[student]), f'{stage}: held-out rollout'
  )
  rows = len(prompts.examples) // jax.process_count()
  first = jax.process_index() * rows
  own = slice(first, first + rows)
  key = jax.random.fold_in(key, HELD_OUT)

  def measure(params, max_new_tokens: int | None = None) -> dict[str, float]:
    with run.clock('eval'):
      rollout = sharding.local_rows(
        generate(
          params,
          prompts.prompt[own],
          prompts.prompt_length[own],
          key,
          first_row=first,
          max_new_tokens=max_new_tokens,
        )
      )
      clipped = rollout.end_reason != STOP
      rewards = [
        run.reward(
          Response(text, ids[:length], messages, 'length' if cut else 'stop'),
          example,
        ).value
        for text, ids, length, messages, cut, example in zip(
          decode(run.tokenizer, rollout),
          rollout.response,
          rollout.response_length,
          prompts.messages[own],
          clipped,
          prompts.examples[own],
          strict=True,
        )
      ]
      # Zeros stand beyond a response.
      surprise = -np.sum(rollout.logp, axis=1, dtype=float)
      measured = (rewards, rollout.response_length, clipped, surprise)
      reward, length, clipped, surprise = sharding.from_hosts(
        np.array(measured, float)
      ).sum(axis=(0, 2))
    count = len(prompts.examples)
    return dict(
      reward=reward / count,
      response_length=length / count,
      clipped_ratio=clipped / count,
      entropy=surprise / length,
    )

  return measure
