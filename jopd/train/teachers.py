"""What a stage reads and never changes: teachers, and bases of adapters."""

from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jopd.models.int8 import quantize_params
from jopd.train.learner import cast
from jopd.train.stage import Run, Stage


class Frozen(NamedTuple):
  """What a stage reads and never changes; on the mesh."""

  base: dict | None  # what the student's adapters are added to
  teachers: dict[str, dict]  # role -> parameters, of those that do not move


def freeze(stage: Stage, run: Run, params: dict[str, dict]) -> Frozen:
  """The frozen parameters as they are now, in the dtype they are kept in.

  No two are copies of one another: two roles of one model share its arrays, and
  so do adapters and the model that they start from. A student that is trained
  as a whole and teaches itself is copied: its own state will be donated.

  With `teacher_memory` the layers of teachers are copied to the memory of the
  hosts. Their embeddings and heads, which the learner reads, stay where they
  were.
  """

  @cache
  def keep(name: str, dtype: str) -> dict:
    donated = name == stage.student.model and not stage.student.lora
    own = jax.tree.map(jnp.copy, params[name]) if donated else params[name]
    if dtype == 'int8':
      # Of what was loaded: rounding twice would be further off.
      own = quantize_params(own, run.models[name].axes)
    return cast(own, computes(run, dtype))

  kept = lambda name, dtype: keep(name, dtype or run.compute_dtype.name)

  @cache
  def teacher(name: str) -> dict:
    own = kept(name, stage.teachers.dtype)
    if not stage.teachers.memory:
      return own
    return own | {'layers': put_in(own['layers'], 'pinned_host')}

  return Frozen(
    kept(stage.student.model, stage.student.lora.base)
    if stage.student.lora
    else None,
    {
      role: teacher(name)
      for role, name in stage.teachers.models.items()
      if role not in stage.teachers.sync
    },
  )


def computes(run: Run, dtype: str) -> jnp.dtype:
  """What products with parameters that are kept in a dtype run in."""
  return run.compute_dtype if dtype in ('', 'int8') else jnp.dtype(dtype)


def put_in(tree: Any, memory: str) -> Any:
  """Returns arrays in another memory, divided as they are.

  Args:
    tree: of arrays. Those that are there already are not copied.
    memory: 'device', or 'pinned_host', that of the hosts, from which devices
      copy and with which they do not compute.
  """
  where = jax.tree.map(lambda x: x.sharding.with_memory_kind(memory), tree)
  return jax.device_put(tree, where)
