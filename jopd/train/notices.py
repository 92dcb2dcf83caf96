"""What is said of a stage while it runs, once something is wrong with it."""

import logging

import numpy as np

from jopd.train.errors import NonFiniteLossError
from jopd.train.faults import first_fault
from jopd.train.stage import Run, Stage
from jopd.train.steps import Phases

_log = logging.getLogger(__name__)


class Notice:
  """Says once that rewards teach nothing, if they have not for some steps."""

  STEPS = 20

  def __init__(self, stage: Stage, run: Run):
    self._stage, self._run = stage, run
    self._steps, self._mixed = 0, 0.0

  def __call__(self, row: dict[str, float]) -> None:
    self._steps += 1
    self._mixed += row.get('mixed_groups', 0.0)
    compares = (
      self._stage.loss.reads.reward and self._stage.rollouts.group_size > 1
    )
    if compares and self._steps == self.STEPS and not self._mixed:
      _log.warning(
        f'{self._stage.name}: for {self.STEPS} steps the rewards of each group'
        f' were equal (now {row.get("reward", 0.0):g} on average), so they'
        ' taught nothing: the prompts are too hard or too easy, responses are'
        ' cut off before the answer, or the reward does not find it'
      )


def note_skipped(
  stage: Stage, run: Run, phases: Phases, row, state, hidden, batch, scalars
) -> None:
  """Says if an update was skipped; stops the run after too many in a row."""
  if not row['skipped']:
    return
  step = -(-int(state.step) // stage.update.num_minibatches)
  wrong = [n for n in ('loss', 'grad_norm') if not np.isfinite(row[n])]
  if wrong:
    what = f'{wrong[0]} is {row[wrong[0]]:g}'
  else:
    usual = np.median(state.guard.norms)
    what = f'grad_norm is {row["grad_norm"]:g}, its median {usual:g}'
  in_a_row = int(state.guard.in_a_row)
  if in_a_row < stage.update.max_consecutive_skips:
    _log.warning(
      '%s: step %d: an update was skipped: %s', stage.name, step, what
    )
    return
  if wrong:
    where = first_fault(stage, run, phases, state, hidden, batch, scalars)
    what += f'; the first that is not finite: {where}'
  raise NonFiniteLossError(
    f'{stage.name}: {in_a_row} updates in a row were skipped, the last one at'
    f' step {step}: {what}. Checkpoints are as they were before; mend that, or'
    ' lower the learning rate, and go on'
  )
