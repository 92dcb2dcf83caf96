"""Which updates are not made: not finite, or of a gradient that jumps.

Decided inside the learner's program. What is known of the updates before is
part of the train state, so that a resumed run decides alike. The rest of the
file reports on the host what was skipped, and why.
"""

from collections.abc import Callable, Iterable, Mapping
import logging
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
from jaxtyping import ScalarLike as Scalar
import numpy as np

from jopd import sharding
from jopd.train.errors import NonFiniteLossError

_log = logging.getLogger(__name__)

WINDOW = 32
"""Gradient norms whose median is the usual one."""


class Guard(NamedTuple):
  """What became of the updates of a stage until now."""

  skipped: Int[Array, '']  # of all
  in_a_row: Int[Array, '']  # of the last ones; 0 if the last one was made
  norms: Float[Array, '32']  # of those made last; NaN where there was none yet


def init_guard() -> Guard:
  """Before the first update."""
  norms = jnp.full(WINDOW, jnp.nan, jnp.float32)
  return Guard(jnp.int32(0), jnp.int32(0), norms)


def judge(
  guard: Guard, loss: Scalar, norm: Scalar, *, spike: float
) -> tuple[Bool[Array, ''], Guard]:
  """Whether an update may be made, and what is known after it.

  An update is skipped when its loss or the norm of its gradient is not finite,
  or when that norm is more than `spike` times the median of the last 32 norms.
  Skipped updates and those of norm 0 do not enter the median. A gradient that
  is larger from now on is therefore skipped until the run stops: raise `spike`.

  Args:
    guard: before the update.
    loss: of the update.
    norm: >= 0, of its gradient before clipping.
    spike: static; 0 sets no bound. No norm is a spike before there are 32.

  Returns:
    Scalar bool, and the guard from now on.

  Example: an update is not made, one after it is.
    >>> guard = init_guard()
    >>> for loss in (jnp.nan, 1.0):
    ...   made, guard = judge(guard, loss, jnp.float32(2), spike=0.0)
    ...   print(bool(made), int(guard.skipped), int(guard.in_a_row))
    False 1 1
    True 1 0
  """
  made = jnp.isfinite(loss) & jnp.isfinite(norm)
  if spike:
    # Comparisons with NaN are false: there is no median yet.
    made &= ~(norm > spike * jnp.median(guard.norms))
  counts = made & (norm > 0)
  newest = jnp.roll(guard.norms, -1).at[-1].set(norm)
  return made, Guard(
    guard.skipped + ~made,
    jnp.where(made, 0, guard.in_a_row + 1),
    jnp.where(counts, newest, guard.norms),
  )


def keep_if(made: Bool[Array, ''], new, old):
  """The new tree if an update is made, else the old one, to the last bit."""
  return jax.tree.map(lambda n, o: jnp.where(made, n, o), new, old)


def report_skipped(
  stage: str,
  step: int,
  metrics: Mapping[str, float],
  guard: Guard,
  *,
  max_consecutive_skips: int,
  trace: Callable[[], Iterable[tuple[str, object]]],
) -> None:
  """Logs a skipped update; ends the run after too many in a row.

  Args:
    stage: its name.
    step: batches of prompts that have been learnt.
    metrics: of the step.
    guard: after it, on the host.
    max_consecutive_skips: skipped updates in a row that end the run.
    trace: () -> (name, tree of arrays) for what the update read and made, in
      order; only looked at if the run ends.

  Raises: NonFiniteLossError, which names the first array that is not finite.
  """
  if not metrics['skipped_updates']:
    return
  wrong = [n for n in ('loss', 'grad_norm') if not np.isfinite(metrics[n])]
  if wrong:
    reason = f'{wrong[0]} is {metrics[wrong[0]]:g}'
  else:
    usual = np.median(guard.norms)
    reason = f'grad_norm is {metrics["grad_norm"]:g}, its median {usual:g}'
  if guard.in_a_row < max_consecutive_skips:
    _log.warning('%s: step %d: an update was skipped: %s', stage, step, reason)
    return
  if wrong:
    reason += f'; the first that is not finite: {first_not_finite(trace())}'
  raise NonFiniteLossError(
    f'{stage}: {guard.in_a_row} updates in a row were skipped, the last one at'
    f' step {step}: {reason}. Checkpoints are as they were before; mend that,'
    ' or lower the learning rate, and go on'
  )


def first_not_finite(trace: Iterable[tuple[str, object]]) -> str:
  """The name of the first array with a number that is not finite, or ''."""
  finite = lambda tree: jax.tree.map(lambda x: jnp.isfinite(x).all(), tree)
  for name, tree in trace:
    for path, fine in jax.tree.leaves_with_path(jax.jit(finite)(tree)):
      if not sharding.whole(fine):
        return name + jax.tree_util.keystr(path, simple=True, separator='.')
  return ''


class EqualRewards:
  """Warns once if rewards taught nothing for the first steps of a process.

  Args:
    stage: its name.
    steps: after which it warns.
  """

  def __init__(self, stage: str, steps: int = 20):
    self._stage, self._steps = stage, steps
    self._seen, self._different = 0, 0.0

  def __call__(self, metrics: Mapping[str, float]) -> None:
    self._seen += 1
    self._different += 1 - metrics.get('frac_reward_zero_std', 1.0)
    if self._seen == self._steps and not self._different:
      _log.warning(
        '%s: for %d steps the rewards of each group were equal (now %g on'
        ' average), so they taught nothing: the prompts are too hard or too'
        ' easy, responses are cut off before the answer, or the reward does'
        ' not find it',
        self._stage,
        self._steps,
        metrics.get('reward', 0.0),
      )
