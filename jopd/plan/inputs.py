"""The inputs of a stage's programs, as shapes on the mesh."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jopd import losses, sharding
from jopd.models import lora
from jopd.rollout.sampling import make_sampling_params
from jopd.train.callbacks.base import initial_scalars
from jopd.train.rollout_batch import RolloutBatch, TeacherInput
from jopd.train.stage import Run, Stage
from jopd.train.state import TrainState, init_state, state_shardings
from jopd.train.teachers import Frozen, freeze


def place(tree, where):
  """Shapes with shardings: one for all, or a tree of them."""
  if isinstance(where, jax.sharding.Sharding):
    where = jax.tree.map(lambda _: where, tree)
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, where
  )


def cast(tree, dtype):
  """Shapes of another dtype, with the same shardings."""
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, dtype, sharding=x.sharding), tree
  )


def state(stage: Stage, run: Run, params: dict[str, dict]) -> TrainState:
  """The train state of a stage.

  Args:
    stage: has the optimizer and the synced teachers.
    run: has the mesh.
    params: model name -> shapes of its parameters.
  """
  own = cast(params[stage.student.model], jnp.float32)
  if stage.student.lora:
    model = run.models[stage.student.model]
    make = partial(lora.init, model, stage.student.lora)
    own = jax.eval_shape(make, jax.random.key(0))
    axes = lora.adapter_axes(model, stage.student.lora)
    own = place(own, sharding.param_shardings(run.mesh, axes, own))
  where = jax.tree.map(lambda x: x.sharding, own)
  shardings = state_shardings(
    run.mesh,
    where,
    own,
    stage.update.tx,
    stage.teachers.sync,
  )
  shapes = jax.eval_shape(
    partial(init_state, tx=stage.update.tx),
    own,
    teachers=dict.fromkeys(stage.teachers.sync, own),
  )
  return place(shapes, shardings)


def frozen(stage: Stage, run: Run, params: dict[str, dict]) -> Frozen:
  """The frozen parameters of a stage: `freeze`, of shapes.

  All on the devices, as while a program reads them.
  """
  there = stage._replace(teachers=stage.teachers._replace(memory=''))
  base, teachers = jax.eval_shape(partial(freeze, there, run), params)
  return Frozen(
    base and _beside(params[stage.student.model], base),
    {
      role: _beside(params[stage.teachers.models[role]], kept)
      for role, kept in teachers.items()
    },
  )


def _beside(params, kept):
  """Shapes with the shardings of the arrays that they were made from.

  One array may have become several, such as int8 values and scales; an axis
  that has shrunk is whole on every device.
  """

  def put(array, made):
    spec = [*array.sharding.spec, *[None] * array.ndim][: array.ndim]
    both = lambda x: zip(spec, x.shape, array.shape, strict=True)
    kept = [axis if own == old else None for axis, own, old in both(made)]
    where = jax.sharding.PartitionSpec(*kept)
    mesh = array.sharding.mesh
    return place(made, jax.sharding.NamedSharding(mesh, where))

  each = lambda array, made: jax.tree.map(partial(put, array), made)
  return jax.tree.map(each, params, kept)


def prompts(stage: Stage, run: Run, rows: int, width: int) -> tuple:
  """The inputs of prefill beside the parameters, in its order.

  Args:
    stage: has the group size.
    run: has the mesh and the stops.
    rows: prompts, b.
    width: P.
  """
  count = rows * stage.rollouts.group_size
  array = jax.ShapeDtypeStruct
  by_row = (
    array((rows, width), jnp.int32),
    array((rows,), jnp.int32),
    jax.eval_shape(partial(make_sampling_params, count)),
  )
  key = array((2,), jnp.uint32)
  whole = key, jax.tree.map(np.asarray, run.stops)
  return (
    *place(by_row, sharding.batch_sharding(run.mesh)),
    *place(whole, sharding.replicated(run.mesh)),
  )


def batch(
  stage: Stage, run: Run, rows: int, widths: dict[str, int]
) -> RolloutBatch:
  """The input of teachers and learner: the responses of one update.

  Args:
    stage: has the teachers.
    run: has the mesh.
    rows: B.
    widths: P of each model's prompt, by role; '' is the student's.
  """
  length = run.max_new_tokens
  array = jax.ShapeDtypeStruct
  prompt = lambda role: TeacherInput(
    array((rows, widths[role]), jnp.int32), array((rows,), jnp.int32)
  )
  row, whole = (array((rows,), x) for x in (jnp.float32, jnp.int32))
  of_tokens = lambda dtype: array((rows, length), dtype)
  student = prompt('')
  only_dataset = set(stage.rollouts.sources) == {'dataset'}
  shapes = RolloutBatch(
    prompt=student.prompt,
    prompt_length=student.prompt_length,
    teachers={role: prompt(role) for role in stage.teachers.models},
    response=of_tokens(jnp.int32),
    response_length=whole,
    mask=of_tokens(jnp.bool_),
    end_reason=whole,
    sampler_logp=None if only_dataset else of_tokens(jnp.float32),
    rollout_logp=of_tokens(jnp.float32)
    if 'student' in stage.rollouts.sources
    else None,
    row=losses.Row(
      *[row if stage.loss.reads.reward else None] * 3, *[whole] * 3, row
    ),
  )
  return place(shapes, sharding.batch_sharding(run.mesh))


def with_hidden(batch: RolloutBatch, hidden: dict) -> RolloutBatch:
  """The batch with hidden states of the teachers, by role."""
  teachers = {
    role: teacher._replace(hidden=hidden[role])
    for role, teacher in batch.teachers.items()
  }
  return batch._replace(teachers=teachers)


def scalars(stage: Stage, run: Run) -> dict[str, jax.ShapeDtypeStruct]:
  """The scalars that the learner reads beside the batch."""
  one = jax.ShapeDtypeStruct((), jnp.float32)
  names = stage.loss.scalars(0, initial_scalars(stage, run))
  return place(dict.fromkeys(names, one), sharding.replicated(run.mesh))


def local_bytes(tree) -> float:
  """Bytes on one device."""
  return float(
    sum(
      np.prod(x.sharding.shard_shape(x.shape), dtype=float) * x.dtype.itemsize
      for x in jax.tree.leaves(tree)
    )
  )
