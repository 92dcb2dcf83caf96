"""Which responses a step learns from: those of now, of long ago, or again.

Rules are pure: (step, made, draws) -> Turn. The responses to one batch of
prompts have a number, counted as they are sampled; a rule says how many there
must be, which one is learnt, and which may be forgotten. So a run that samples
and learns at the same time is one in which a batch waits its turn, and a buffer
is one in which a batch has several.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jopd import losses, sharding
from jopd.train.step import Batch


class Turn(NamedTuple):
  """What a step does with the batches of responses."""

  made: int  # how many are sampled before it learns, from the stage's start
  learn: int  # number of the one that it learns
  keep: int  # number of the oldest that later steps may learn


def fixed_staleness(step: int, made: int, draws: Sequence, *, lag: int) -> Turn:
  """Responses of `lag` steps ago, each learnt once, in their order.

  What an asynchronous run does to the student, made repeatable: step k learns
  responses that the student wrote after max(0, k - lag) steps. At the first
  step the queue is filled. lag 0 is on-policy.

  Args:
    step: steps done.
    made: batches sampled so far.
    draws: two uniform numbers of the step; not used.
    lag: >= 0, steps.

  Returns:
    Turn.

  Raises: ValueError when lag is negative.
  References: AsyncOPD, arXiv 2606.24143, studies rollouts that lag behind, from
    its abstract; that every batch lags alike is our simplification.

  Example: the third step learns the third batch; two more wait.
    >>> fixed_staleness(2, 4, (0.0, 0.0), lag=2)
    Turn(made=5, learn=2, keep=3)
  """
  if lag < 0:
    raise ValueError(f'lag must be at least 0, got {lag}')
  return Turn(step + lag + 1, step, step + 1)


def buffer(
  step: int, made: int, draws: Sequence, *, size: int, fresh: float
) -> Turn:
  """New responses in a share of the steps, old ones from a buffer in the rest.

  A step that replays samples nothing, which is what it saves. Which of the old
  ones is drawn at random, all alike, as many times as it happens.

  Args:
    step: steps done; not used.
    made: batches sampled so far.
    draws: two uniform numbers of the step, in [0, 1).
    size: >= 1, batches that are kept.
    fresh: in (0, 1], the chance of new responses; may be a schedule. 1 is
      on-policy.

  Returns:
    Turn.

  Raises: ValueError when a setting is out of range.
  References: the replay of student's outputs in DistiLLM, arXiv 2402.03898, by
    whole batches instead of samples; its scheduler is not in here.

  Example: half of the steps are new; here the fourth batch, then an old one.
    >>> buffer(3, 3, (0.4, 0.9), size=2, fresh=0.5)
    Turn(made=4, learn=3, keep=2)
    >>> buffer(4, 4, (0.7, 0.9), size=2, fresh=0.5)
    Turn(made=4, learn=3, keep=2)
  """
  if size < 1 or not 0 < fresh <= 1:
    raise ValueError(
      f'size must be at least 1 and fresh in (0, 1], got {size} and {fresh}'
    )
  new = not made or draws[0] < fresh
  made += int(new)
  keep = max(0, made - size)
  old = keep + int(draws[1] * (made - keep))
  return Turn(made, made - 1 if new else old, keep)


class Stored(NamedTuple):
  """A batch of responses that waits, or may come again; on the host."""

  version: int  # updates of the student before it was sampled
  parts: list[Batch]  # for each update, of this process's rows


class Replay:
  """The batches of responses of a stage that may still be learnt.

  Args:
    rule: (step, controlled scalars) -> function of this room, its settings bound.
    key: of the draws.
    steps: of the stage; no more batches are made.
    mesh: where batches lie in checkpoints.
  """

  def __init__(
    self,
    rule: Callable[[int, Mapping], Callable],
    key: jax.Array,
    steps: int,
    mesh: jax.sharding.Mesh,
  ):
    self._rule, self._steps = rule, steps
    self._seed = np.ravel(jax.random.key_data(key)).tolist()
    self._where = sharding.batch_sharding(mesh)
    self._made = 0
    self._stored: dict[int, Stored] = {}
    self._turn = Turn(0, 0, 0)

  def begin(self, step: int, controlled: Mapping) -> range:
    """The numbers of the batches that this step has to add."""
    draws = np.random.default_rng([*self._seed, step]).random(2).tolist()
    self._turn = self._rule(step, controlled)(step, self._made, draws)
    return range(self._made, min(self._turn.made, self._steps))

  def add(self, version: int, parts: list[Batch]) -> None:
    """Takes the next batch; see `Stored`."""
    self._stored[self._made] = Stored(version, parts)
    self._made += 1

  def take(self) -> Stored:
    """The batch that this step learns; what is not needed any more is gone."""
    taken = self._stored[self._turn.learn]
    self._stored = {
      n: kept for n, kept in self._stored.items() if n >= self._turn.keep
    }
    return taken

  def get_state(self) -> dict:
    """What `set_state` needs beside the arrays; plain JSON, tiny."""
    hosts = jax.process_count()
    shape = lambda x: [[len(x) * hosts, *x.shape[1:]], x.dtype.name]
    return dict(
      made=self._made,
      versions={str(n): kept.version for n, kept in self._stored.items()},
      shapes=jax.tree.map(shape, self._plain()),
    )

  def arrays(self) -> dict:
    """What is stored, by number, on the mesh; {} where nothing waits."""
    return sharding.put(self._plain(), self._where)

  def abstract(self, state: dict) -> dict:
    """The shapes of `arrays` when `get_state` was called."""
    return _shaped(state['shapes'], self._where)

  def set_state(self, state: dict, arrays: dict) -> None:
    """Goes on after the step that `get_state` and `arrays` followed."""
    self._made = state['made']
    self._stored = {
      int(number): Stored(
        state['versions'][number],
        [_batch(sharding.local_rows(parts[i])) for i in sorted(parts, key=int)],
      )
      for number, parts in arrays.items()
    }

  def _plain(self) -> dict:
    return {
      str(number): {str(i): _plain(part) for i, part in enumerate(kept.parts)}
      for number, kept in self._stored.items()
    }


def _plain(batch: Batch) -> dict:
  """A batch as dictionaries of arrays; what is None is left out."""
  fields = {n: x for n, x in batch._asdict().items() if x is not None}
  prompts = batch.teacher_prompts.items()
  fields['teacher_prompts'] = {
    role: dict(prompt=prompt, length=length)
    for role, (prompt, length) in prompts
  }
  row = batch.row._asdict().items()
  fields['row'] = {n: x for n, x in row if x is not None}
  return fields


def _batch(fields: dict) -> Batch:
  """The inverse of `_plain`."""
  prompts = fields['teacher_prompts'].items()
  fields = dict.fromkeys(Batch._fields) | fields
  fields['teacher_prompts'] = {
    role: (own['prompt'], own['length']) for role, own in prompts
  }
  fields['row'] = losses.Row(**fields['row'])
  return Batch(**fields)


def _shaped(shapes: Any, where) -> Any:
  """Shapes of arrays from their names in a file."""
  if isinstance(shapes, dict):
    return {name: _shaped(x, where) for name, x in shapes.items()}
  shape, dtype = shapes
  return jax.ShapeDtypeStruct(tuple(shape), np.dtype(dtype), sharding=where)
