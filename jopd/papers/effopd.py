"""EffOPD: going on along the way that was learnt, while a reward improves.

After steps 1, 2, 4, 8, ... the weights of attention and MLPs are moved beyond
the student, along their way since the last such step, as long as the reward of
held-out prompts grows. Training goes on from the best place.

References: EffOPD, arXiv 2605.11739, after its released code. There the factor
  is 2, then a <- a / (1 + a) of a longer way: the same places. Steps are
  those of the optimizer there; here, with several updates a step, batches.
"""

import logging

import jax
import jax.numpy as jnp
import numpy as np

from jopd import sharding
from jopd.compilation import Program
from jopd.train.callbacks import Callback, Setup, StepContext
from jopd.train.state import TrainState

_log = logging.getLogger(__name__)


def extrapolate_weights(
  setup: Setup, *, reach: float = 2.0, max_tries: int = 5
) -> Callback:
  """The callback; put it into `callbacks`, and set `held_out`.

  Let D be the way of the parameters since the last time. At powers of two the
  student is scored as it is, then `reach`, 2 `reach`, ... D further, until the
  reward does not improve. A copy of the weights is kept for it. Metrics:
  'extrapolation/reward_before' and '_after', 'extrapolation/tries', and
  'extrapolation/distance' in D.

  Args:
    setup: of the stage.
    reach: > 0, distance from one place to the next, in D.
    max_tries: >= 1, places that are scored beyond the student.

  Raises: ValueError when a setting is out of range, there are no held-out
    prompts, or only adapters are trained.
  """
  if not reach > 0 or max_tries < 1:
    raise ValueError(
      'reach must be above 0 and max_tries at least 1, got'
      f' {reach} and {max_tries}'
    )
  if setup.lora:
    raise ValueError(
      'it moves all parameters, and only adapters are trained: take out lora'
      ' or this callback'
    )
  if setup.measure is None:
    raise ValueError(
      'it scores held-out prompts: set held_out to a number of examples'
    )
  return _ExtrapolateWeights(setup, reach, max_tries)


class _ExtrapolateWeights(Callback):
  def __init__(self, setup: Setup, reach: float, max_tries: int):
    self._setup, self._reach, self._max_tries = setup, reach, max_tries
    self._origin: dict = {}
    where = jax.tree.map(lambda x: x.sharding, setup.trained)
    self._extrapolate = Program(
      f'{setup.stage}: extrapolation',
      extrapolate,
      out_shardings=where,
      clock=setup.clock,
    )

  def start(self, state: TrainState) -> None:
    # Copies here and below: the arrays of the state will be donated.
    self._origin = jax.tree.map(jnp.copy, state.params)

  def after_step(self, context: StepContext) -> None:
    if context.step & (context.step - 1):  # no power of two
      return
    params, limit = context.state.params, context.sampling['max_new_tokens']

    def place(distance: float) -> dict:
      if not distance:
        return params
      everywhere = sharding.replicated(self._setup.mesh)
      far = sharding.make_global_array(np.float32(distance), everywhere)
      return self._extrapolate(params, self._origin, far)

    score = lambda far: self._setup.measure(place(far), limit)['reward']
    best, rewards = line_search(score, self._reach, self._max_tries)
    context.metrics.update(
      {
        'extrapolation/reward_before': rewards[0],
        'extrapolation/reward_after': max(rewards),
        'extrapolation/tries': float(len(rewards) - 1),
        'extrapolation/distance': best,
      }
    )
    params = place(best)
    context.state = context.state._replace(params=params)
    self._origin = jax.tree.map(jnp.copy, params)

  def get_state(self) -> dict:
    return {'has_origin': True}

  def arrays(self) -> dict:
    return self._origin

  def abstract(self, state: dict) -> dict:
    return self._setup.trained

  def restore(self, state: dict, arrays: dict) -> None:
    self._origin = arrays


def line_search(
  score, reach: float, max_tries: int
) -> tuple[float, list[float]]:
  """The best of 0, reach, 2 reach, ..., and the scores until one is no better.

  Args:
    score: distance -> number; larger is better.
    reach: from one place to the next.
    max_tries: places beyond 0.

  Returns:
    The place with the best score, the nearest of equal ones; all scores.

  Example: the third place beyond 0 is no better than the second.
    >>> line_search(lambda distance: min(distance, 4.0), 2.0, 5)
    (4.0, [0.0, 2.0, 4.0, 4.0])
  """
  scores = [float(score(0.0))]
  while len(scores) <= max_tries:
    scores.append(float(score(reach * len(scores))))
    if scores[-1] <= scores[-2]:
      break
  return reach * scores.index(max(scores)), scores


def extrapolate(params: dict, origin: dict, distance) -> dict:
  """Params + distance * (params - origin), of attention and MLPs alone.

  Embeddings, heads and norms stay, and so does every one that has not moved.

  Example:
    >>> tree = lambda x: {'mlp': {'up': x}, 'norm': x}
    >>> extrapolate(tree(2.0), tree(1.5), 4.0)
    {'mlp': {'up': 4.0}, 'norm': 2.0}
  """

  def one(path, own, old):
    names = {getattr(key, 'key', None) for key in path}
    moves = names & {'attention', 'mlp'} and not names & {'scale'}
    return own + distance * (own - old) if moves else own

  return jax.tree.map_with_path(one, params, origin)
