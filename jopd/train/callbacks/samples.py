"""Responses as text, for people to read."""

from jopd.rewards import Response, Reward
from jopd.train.callbacks.base import Callback, Setup, StepContext
from jopd.train.metrics import MetricsLog


def log_samples(setup: Setup, *, every: int, count: int = 4) -> Callback:
  """Writes some responses to `samples.jsonl` in the run's folder.

  A row has the messages that were read, the response, its source, why it ended,
  its number of tokens, its reward and the parts of it. Steps that learn old
  responses write nothing.

  Args:
    setup: of the stage.
    every: steps from one time to the next; the first step is among them.
    count: most responses each time, of this process: all those to a prompt
      before any to the next.

  Raises: ValueError when every or count is below 1.
  """
  if every < 1 or count < 1:
    raise ValueError(
      f'every and count must be at least 1, got {every} and {count}'
    )

  class LogSamples(Callback):
    log: MetricsLog | None = None

    def after_step(self, context: StepContext) -> None:
      if self.log is None:
        self.log = MetricsLog(setup.folder, 'samples')
        # A run that was interrupted may have written later steps.
        self.log.rewind(setup.stage, context.step - 1)
      if (context.step - 1) % every:
        return
      for prompts, info in context.samples[:1]:
        rows = zip(info.responses, info.rewards, strict=True)
        for i, (response, reward) in zip(range(count), rows, strict=False):
          row = _sample_row(response, reward, info.writers, i)
          row['example'] = prompts.ids[i // len(info.writers)]
          self.log.write(setup.stage, context.step, 'sample', row)

  return LogSamples()


def _sample_row(
  response: Response, reward: Reward, writers, index: int
) -> dict:
  prompt = '\n'.join(
    f'{turn["role"]}: {turn["content"]}' for turn in response.prompt
  )
  return dict(
    prompt=prompt,
    response=response.text,
    source=writers[index % len(writers)],
    end_reason=response.end_reason,
    response_length=len(response.ids),
    reward=reward.value,
    **{f'reward/{name}': value for name, value in reward.parts.items()},
  )
