"""Callbacks that let responses wait: those of old students, or used again.

The responses to a batch of prompts have a number, counted as they are sampled.
A rule says how many there must be, which one is learnt, and which may go. So a
run that samples and learns at the same time is one in which a batch waits its
turn, and a buffer is one in which a batch has several.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jopd import sharding
from jopd.train.callbacks.base import Callback, Setup
from jopd.train.rollout_batch import Sampled, from_dict, to_dict


class Turn(NamedTuple):
  """What a step does with the batches of responses.

  Attributes:
    made: how many are sampled before it learns, from the stage's start.
    learn: number of the one that it learns.
    keep: number of the oldest that later steps may learn.
  """

  made: int
  learn: int
  keep: int


class Replay(Callback):
  """Batches of responses that are kept, in the checkpoint, too.

  Args:
    setup: of the stage.
    turn: (step, batches sampled so far) -> Turn.
    off_policy: whether older responses may be learnt.
  """

  def __init__(
    self, setup: Setup, turn: Callable[[int, int], Turn], off_policy: bool
  ):
    self.turn, self.off_policy = turn, off_policy
    self._steps = setup.steps
    self._sharding = sharding.batch_sharding(setup.mesh)
    self._made = 0
    self._stored: dict[int, Sampled] = {}

  def around_rollout(self, step: int, sample: Callable[[], Sampled]) -> Sampled:
    turn = self.turn(step, self._made)
    while self._made < min(turn.made, self._steps):
      self._stored[self._made] = sample()
      self._made += 1
    batch = self._stored[turn.learn]
    kept = {n: x for n, x in self._stored.items() if n >= turn.keep}
    self._stored = kept
    return batch

  def get_state(self) -> dict:
    hosts = jax.process_count()
    shape = lambda x: [[len(x) * hosts, *x.shape[1:]], x.dtype.name]
    return dict(
      made=self._made,
      versions={str(n): x.version for n, x in self._stored.items()},
      shapes=jax.tree.map(shape, self._plain()),
    )

  def arrays(self) -> dict:
    return sharding.make_global_array(self._plain(), self._sharding)

  def abstract(self, state: dict) -> dict:
    return self._shapes(state['shapes'])

  def restore(self, state: dict, arrays: dict) -> None:
    self._made = state['made']
    self._stored = {
      int(number): Sampled(
        state['versions'][number],
        [from_dict(sharding.local_rows(x[i])) for i in sorted(x, key=int)],
      )
      for number, x in arrays.items()
    }

  def _plain(self) -> dict:
    return {
      str(number): {str(i): to_dict(x) for i, x in enumerate(kept.minibatches)}
      for number, kept in self._stored.items()
    }

  def _shapes(self, shapes: Any) -> Any:
    if isinstance(shapes, dict):
      return {name: self._shapes(x) for name, x in shapes.items()}
    shape, dtype = shapes
    return jax.ShapeDtypeStruct(
      tuple(shape), np.dtype(dtype), sharding=self._sharding
    )


def fixed_staleness(setup: Setup, *, staleness: int) -> Callback:
  """Responses of `staleness` steps ago, each learnt once, in their order.

  What an asynchronous run does to the student, made repeatable: step k learns
  responses that the student wrote after max(0, k - staleness) steps. The first
  step fills the queue. 0 is on-policy.

  Raises: ValueError when staleness is negative.
  References: AsyncOPD, arXiv 2606.24143, studies rollouts that lag behind, from
    its abstract; that every batch lags alike is our simplification.
  """
  if staleness < 0:
    raise ValueError(f'staleness must be at least 0, got {staleness}')
  turn = lambda step, made: Turn(step + staleness + 1, step, step + 1)
  return Replay(setup, turn, off_policy=staleness > 0)


def replay_buffer(
  setup: Setup, *, size: int, fresh: float | Callable[[int], float]
) -> Callback:
  """New responses in a share of the steps, old ones from a buffer in the rest.

  A step that replays samples nothing, which is what it saves. Which of the old
  ones is drawn at random, all alike, as many times as it happens.

  Args:
    setup: of the stage.
    size: >= 1, batches that are kept.
    fresh: in (0, 1], the chance of new responses; a number or a schedule of
      the step. 1 is on-policy.

  Raises: ValueError when a setting is out of range.
  References: the replay of student's outputs in DistiLLM, arXiv 2402.03898, by
    whole batches instead of samples; its scheduler is not in here.
  """
  share = fresh if callable(fresh) else lambda step: fresh
  for step in (0, setup.steps - 1):
    if size < 1 or not 0 < share(step) <= 1:
      raise ValueError(
        'size must be at least 1 and fresh in (0, 1], got'
        f' {size} and {share(step)}'
      )
  seed = np.ravel(jax.random.key_data(setup.key)).tolist()

  def turn(step: int, made: int) -> Turn:
    # Draws are of the step, so a resumed run draws the same.
    chance, place = np.random.default_rng([*seed, step]).random(2).tolist()
    new = not made or chance < share(step)
    made += int(new)
    keep = max(0, made - size)
    old = keep + int(place * (made - keep))
    return Turn(made, made - 1 if new else old, keep)

  return Replay(setup, turn, off_policy=callable(fresh) or fresh < 1)
