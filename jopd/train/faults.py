"""Where the first number that is not finite arose, once updates are skipped."""

from collections.abc import Iterator, Mapping
from functools import partial

import jax
from jax import lax
import jax.numpy as jnp

from jopd import sharding
from jopd.models.lora import attach
from jopd.rollout.score import score
from jopd.train.stage import Run, Stage
from jopd.train.state import TrainState
from jopd.train.step import Batch, cast, split
from jopd.train.steps import Phases


def first_fault(
  stage: Stage,
  run: Run,
  phases: Phases,
  state: TrainState,
  hidden,
  batch: Batch,
  scalars: Mapping[str, float] | None = None,
) -> str:
  """Looks along the way of the data, and stops at what is not finite.

  Rewards and log-probs of the batch, then parameters and hidden states of the
  teachers, parameters and hidden states of the student, terms of the loss,
  gradients. Nothing here is paid for as long as nothing goes wrong.

  Args:
    stage, run, phases: of the update.
    state: after it was skipped, so as good as before.
    hidden: of the teachers.
    batch: that was not learnt from.
    scalars: of the terms, by name.

  Returns:
    The name of the array, with its role and path where it is one of many.
  """
  everywhere = sharding.replicated(run.mesh)
  finite = jax.jit(_finite, out_shardings=everywhere)
  for name, tree in _along(stage, run, phases, state, hidden, batch, scalars):
    for path, fine in jax.tree.leaves_with_path(jax.device_get(finite(tree))):
      if not fine:
        return name + _readable(path)
  return ''


def _along(
  stage: Stage,
  run: Run,
  phases: Phases,
  state: TrainState,
  hidden,
  batch: Batch,
  scalars: Mapping[str, float] | None,
) -> Iterator[tuple[str, dict]]:
  """What an update reads and makes, in order; later things when asked for."""
  yield 'the batch: ', _floats(batch)
  teachers = phases.teachers(state)
  for role in stage.teachers.models:
    yield f'parameters of {role}: ', teachers[role]
    yield f'hidden states of {role}', hidden[role]
  yield f'parameters of {stage.student.model}: ', state.params
  base = phases.frozen.base
  look = jax.jit(partial(_student_hidden, stage, run))
  yield (
    f'hidden states of {stage.student.model}',
    look(base, state.params, batch),
  )
  # The update counted, though it was not made.
  before = state._replace(step=state.step - 1)
  args = (before, phases.frozen.teachers, hidden, batch, base)
  args += (phases.scalars(scalars),)
  gradients, loss, metrics = jax.jit(phases.gradients)(*args)
  terms = {n: x for n, (x, _) in metrics.items() if n.startswith('loss/')}
  yield 'a term of the loss: ', terms
  yield 'the loss', loss
  yield f'the gradient of {stage.student.model}: ', gradients


def _student_hidden(stage: Stage, run: Run, base, params, batch: Batch):
  dtype = run.compute_dtype
  if stage.student.lora:
    params = attach(cast(base, dtype), params, stage.student.lora)
  else:
    params = cast(params, dtype)

  def of_part(part: Batch):
    read = part.prompt, part.prompt_length, part.response
    return score(run.models[stage.student.model], params, *read)

  return lax.map(
    of_part,
    split(
      batch,
      stage.update.gradient_accumulation_steps,
      stage.update.rows_together,
    ),
  )


def _floats(batch: Batch) -> dict:
  """The numbers that came with the tokens; those of padding do not count."""
  live = lambda x: jnp.where(batch.mask, x, 0)
  logps = jax.tree.map(live, (batch.sampler_logp, batch.rollout_logp))
  names = 'sampler_logp', 'rollout_logp'
  return {'row': batch.row, **dict(zip(names, logps, strict=True))}


def _finite(tree):
  return jax.tree.map(lambda x: jnp.isfinite(x).all(), tree)


def _readable(path) -> str:
  return jax.tree_util.keystr(path, simple=True, separator='.')
