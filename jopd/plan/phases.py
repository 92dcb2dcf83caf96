"""The programs of a stage, compiled from shapes."""

from collections.abc import Iterator
import logging
import time

import jax

from jopd.models.api import Model
from jopd.plan import flops, inputs
from jopd.plan.decoding import rollout
from jopd.plan.program import Compiled, Phase, TooLarge
from jopd.rollout.score import score
from jopd.train.stage import Run, Stage
from jopd.train.steps import make_programs, teacher_heads
from jopd.train.teachers import Frozen

_log = logging.getLogger(__name__)


def measure(
  stage: Stage,
  run: Run,
  params: dict[str, dict],
  *,
  prompts: int,
  widths: dict[str, int],
) -> Iterator[Phase]:
  """The phases of a stage, in order.

  Args:
    stage: of the run.
    run: what its stages share; its devices need not be here.
    params: model name -> shapes of its parameters.
    prompts: per step.
    widths: most tokens of each model's prompt, by role; '' is the student's.

  Raises: TooLarge instead of the first phase that does not fit a device.
  """
  state = inputs.state(stage, run, params)
  frozen = inputs.frozen(stage, run, params)
  # Layers in host memory are on the devices while they are used.
  waiting = _waiting(stage, frozen)
  held = inputs.local_bytes(state) + _held(stage, frozen, params)
  held -= inputs.local_bytes(waiting)

  def compiled(name, jitted, *args):
    start = time.perf_counter()
    traced = jitted.trace(*args)
    try:
      program = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
      if 'RESOURCE_EXHAUSTED' not in str(error):
        raise
      raise TooLarge(name, str(error).splitlines()[0][:200]) from error
    seconds = time.perf_counter() - start
    _log.info('compiled %s: %s in %.1f s', stage.name, name, seconds)
    return Compiled(args, traced, program, seconds)

  for role in stage.rollouts.mixing:
    _log.warning(
      '%s: %s decodes together with the student; its cache and its time are'
      ' not in this plan',
      stage.name,
      role,
    )
  where = jax.tree.map(lambda x: x.sharding, state)
  programs = make_programs(stage, run, where)
  teachers = frozen.teachers | state.teachers
  for role, responses in stage.rollouts.sources.items():
    if role == 'dataset':
      continue
    name = {'student': stage.student.model, **stage.teachers.models}[role]
    policy = {'student': state.params, **teachers}[role]
    if role == 'student' and stage.student.lora:
      # Adapters are merged before sampling.
      policy = inputs.cast(params[name], run.compute_dtype)
    own = stage._replace(rollouts=stage.rollouts._replace(group_size=responses))
    asked = inputs.prompts(own, run, prompts, widths.get(role, widths['']))
    here = 0.0 if role == 'student' else inputs.local_bytes(waiting)
    yield from rollout(own, run, name, policy, asked, held + here, compiled)

  rows = prompts * stage.rollouts.group_size // stage.update.num_minibatches
  batch = inputs.batch(stage, run, rows, widths)
  models = {r: run.models[name] for r, name in stage.teachers.models.items()}
  if models:
    program = compiled('teacher', programs.teach, teachers, batch)
    yield program.phase(
      'teacher', stage.update.num_minibatches, held, (batch, waiting)
    )
    batch = inputs.with_hidden(batch, program.results)
  args = state, teacher_heads(stage, run, frozen), batch, frozen.base
  args += (inputs.scalars(stage, run),)
  program = compiled('learner', programs.learn, *args)
  own = run.models[stage.student.model]
  tokens = batch.response.size
  whole = params[stage.student.model]
  forward = _scoring(own, whole, batch) + _head(own, whole, tokens)
  # Backward to activations and to matrices; not to these with adapters.
  useful = forward * (2 if stage.student.lora else 3)
  useful += sum(_head(models[r], teachers[r], tokens) for r in models)
  size = min(
    run.max_new_tokens,
    max(
      1,
      stage.loss.chunk_tokens
      * stage.update.gradient_accumulation_steps
      // rows,
    ),
  )
  yield program.phase(
    'learner',
    stage.update.num_minibatches,
    held,
    batch,
    useful=useful,
    turns=-(-run.max_new_tokens // size),
  )


def _scoring(model: Model, params, batch) -> float:
  """Operations of a forward pass over prompts and responses."""
  run = jax.jit(lambda *args: score(model, *args))
  own = batch.prompt, batch.prompt_length, batch.response
  return flops.count(run.trace(params, *own))


def _head(model: Model, params, tokens: int) -> float:
  """Operations of a head over tokens."""
  rows, width = jax.eval_shape(model.head, params).shape
  return 2.0 * tokens * rows * width


def _held(stage: Stage, frozen: Frozen, params) -> float:
  """Bytes that stay on a device beside the state, each array once."""
  kept = {}  # by model and dtype: adapters and teachers may share
  if frozen.base is not None:
    kept[stage.student.model, stage.student.lora.base] = frozen.base
  for role, tree in frozen.teachers.items():
    kept[stage.teachers.models[role], stage.teachers.dtype] = tree
  # A model in its loaded dtype is there once.
  loaded = {name for name, dtype in kept if not dtype} | {stage.student.model}
  if stage.teachers.memory:
    loaded = {stage.student.model}
  others = [params[name] for name in stage.later - loaded]
  return inputs.local_bytes((list(kept.values()), others))


def _waiting(stage: Stage, frozen: Frozen) -> list:
  """Layers of teachers in host memory, each model's once."""
  if not stage.teachers.memory:
    return []
  trees = {
    stage.teachers.models[r]: tree for r, tree in frozen.teachers.items()
  }
  return [tree['layers'] for tree in trees.values()]
