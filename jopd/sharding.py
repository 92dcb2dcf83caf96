"""From logical axis names to shardings: one mesh of three axes, one table.

`data` and `fsdp` both divide the batch; `fsdp` also divides the width of every
matrix and `tensor` its other side, so that parameters, gradients and optimizer
moments take 1 / (fsdp * tensor) of the memory per device. The compiler places
the collectives.
"""

from collections.abc import Callable, Sequence
from functools import partial
import math
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array
import numpy as np
import optax

MESH_AXES = ('data', 'fsdp', 'tensor')

BATCH = ('data', 'fsdp')
"""Mesh axes that divide rows of a batch."""

RULES = {
  'vocab': 'tensor',
  'heads': 'tensor',
  'kv_heads': 'tensor',
  'mlp': 'tensor',
  'embed': 'fsdp',
  'experts': None,
  'layers': None,
  'head_dim': None,
  None: None,
}
"""Mesh axis that divides each logical axis of a parameter."""


def make_mesh(
  data: int = 1,
  fsdp: int = 1,
  tensor: int = 1,
  *,
  devices: Sequence[jax.Device] | None = None,
) -> Mesh:
  """Returns a mesh over the devices of all processes.

  Args:
    data: copies of the model, each with its own rows of the batch.
    fsdp: devices that share one copy and divide the rows between them.
    tensor: devices that work on the same rows together; keep within one host.
      At most one of the three may be -1: the devices the others leave.
    devices: those to use; all of them by default.

  Raises: ValueError when the product is not the number of devices.

  Example:
    >>> make_mesh(data=-1).shape['data'] == jax.device_count()
    True
  """
  sizes = (data, fsdp, tensor)
  text = ', '.join(f'{a} = {n}' for a, n in zip(MESH_AXES, sizes, strict=True))
  devices = jax.devices() if devices is None else list(devices)
  if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
    raise ValueError(
      f'mesh sizes must be positive, or -1 for at most one; got {text}'
    )
  given = math.prod(size for size in sizes if size != -1)
  if len(devices) % given or (given != len(devices) and -1 not in sizes):
    raise ValueError(
      f'a mesh of {text} does not use the {len(devices)} devices that are '
      f'there: make the product {len(devices)}, or one of the sizes -1'
    )
  sizes = tuple(len(devices) // given if size == -1 else size for size in sizes)
  # make_mesh defaults to Explicit axes, under which a plain gather fails.
  return jax.make_mesh(
    sizes, MESH_AXES, axis_types=(AxisType.Auto,) * 3, devices=devices
  )


def param_shardings(mesh: Mesh, axes: Any, params: Any) -> Any:
  """Returns a pytree of NamedSharding like `params`.

  Args:
    mesh: from `make_mesh`.
    axes: logical names per array, as in `Model.axes`.
    params: arrays, or anything else with shapes (`jax.eval_shape`).

  Raises: ValueError when an axis cannot be divided, with the sizes that could.
  """

  def shard(names, array):
    for name, size in zip(names, array.shape, strict=True):
      _check_divides(mesh, name, size)
    spec = PartitionSpec(*[RULES[name] for name in names])
    return NamedSharding(mesh, spec)

  return jax.tree.map(
    shard, axes, params, is_leaf=lambda leaf: isinstance(leaf, tuple)
  )


def _check_divides(mesh: Mesh, name: str | None, size: int) -> None:
  if name not in RULES:
    raise ValueError(
      f'unknown logical axis {name!r}: use one of {", ".join(map(str, RULES))}'
    )
  axis = RULES[name]
  if axis and size % mesh.shape[axis]:
    fits = [n for n in range(1, mesh.size + 1) if size % n == 0]
    raise ValueError(
      f'{name} = {size} cannot be divided over {axis} = {mesh.shape[axis]}: '
      f'choose {axis} in {{{", ".join(map(str, fits))}}}'
    )


def optimizer_shardings(
  tx: optax.GradientTransformation, params: Any, shardings: Any
) -> Any:
  """Returns a pytree of NamedSharding like `tx.init(params)`.

  Moments lie as the parameter they belong to, everything else (counts,
  factored statistics) on every device. Needed as `out_shardings` of a jitted
  `tx.init`: its zeros do not depend on the parameters, so that the compiler
  would put all of them on one device.

  Args:
    tx: the optimizer.
    params: arrays or their shapes.
    shardings: from `param_shardings`.
  """
  everywhere = NamedSharding(
    jax.tree.leaves(shardings)[0].mesh, PartitionSpec()
  )
  return optax.tree_map_params(
    tx,
    lambda moment, param, sharding: (
      sharding if moment.shape == param.shape else everywhere
    ),
    jax.eval_shape(tx.init, params),
    params,
    shardings,
    transform_non_params=lambda _: everywhere,
  )


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of arrays whose first axis is the batch."""
  return NamedSharding(mesh, PartitionSpec(BATCH))


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of arrays that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def put(tree: Any, sharding: NamedSharding) -> Any:
  """Returns host arrays as global arrays on the mesh.

  Args:
    tree: of this process's rows, where the sharding divides rows.
    sharding: of every array.
  """
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)),
    tree,
  )


def local_rows(tree: Any) -> Any:
  """Returns the rows that this process holds, as NumPy arrays.

  The inverse of `put`.

  Args:
    tree: of arrays whose first axis is the batch and whose others are whole,
      and of scalars.
  """

  def rows(array):
    if not array.ndim:
      return np.asarray(array)
    # Devices that hold copies of the same rows give the same start.
    parts = {s.index[0].start or 0: s.data for s in array.addressable_shards}
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])

  return jax.tree.map(rows, tree)


def from_hosts(array: np.ndarray) -> np.ndarray:
  """Returns every process's copy of a host array, stacked: [processes, ...].

  Raises: RuntimeError when another process is gone.
  """
  if jax.process_count() == 1:
    return np.asarray(array)[None]
  try:
    return multihost_utils.process_allgather(array)
  except ValueError as error:  # not a wrong input of anybody
    raise RuntimeError(f'lost another process: {error}') from error


def largest(numbers: np.ndarray) -> int:
  """Returns the largest of the whole numbers that any process has."""
  return int(from_hosts(np.max(numbers, keepdims=True)).max())


def whole(array: Array) -> np.ndarray:
  """Returns all of a sharded array, on every process."""
  if array.is_fully_addressable:
    return np.asarray(array)
  return multihost_utils.process_allgather(array, tiled=True)


def constrain_batch(mesh: Mesh) -> Callable[[Array], Array]:
  """Returns a function that pins the first axis to the batch, for `make_model`.

  The value is unchanged. The other axes are whole on every device.
  """
  sharding = batch_sharding(mesh)
  return lambda x: jax.lax.with_sharding_constraint(x, sharding)


def by_rows(mesh: Mesh) -> Callable[[Callable], Callable]:
  """Returns a function that runs f(x, weights) on each device's rows apart.

  For `make_model`. The value is unchanged if f treats rows alone. The weights
  are collected from `fsdp`, while `tensor` stays with the compiler.
  """
  rows, whole = PartitionSpec(BATCH), PartitionSpec()

  def divide(f):
    return jax.shard_map(
      f,
      mesh=mesh,
      in_specs=(rows, whole),
      out_specs=rows,
      axis_names=set(BATCH),
    )

  return divide


def by_heads(mesh: Mesh) -> Callable[[Callable], Callable]:
  """Returns a function that runs a kernel on each device's rows and heads."""
  by_token = PartitionSpec(BATCH, None, RULES['heads'])
  by_head = PartitionSpec(BATCH, RULES['heads'])

  def divide(attend):
    def run(query, key, value, *, scale):
      return jax.shard_map(
        partial(attend, scale=scale),
        mesh=mesh,
        in_specs=(by_token, by_head, by_head),
        out_specs=by_token,
        # A kernel does not say along which axes its results differ.
        check_vma=False,
      )(query, key, value)

    return run

  return divide


def gather_layer(mesh: Mesh) -> Callable[[Any, Any], Any]:
  """Returns a function that collects a layer's weights, for `make_model`.

  Left alone, the TPU compiler cuts products over `fsdp` into a slice for each
  device, and each slice reads and writes all of the sum.
  """

  def put(divided, array):
    whole = [None if axis == 'fsdp' else axis for axis in divided]
    pin = lambda x, spec: jax.lax.with_sharding_constraint(
      x, NamedSharding(mesh, PartitionSpec(*spec))
    )
    gather = jax.custom_vjp(lambda x: pin(x, whole))
    # A gradient is whole first, or its product is cut into slices again.
    back = lambda _, g: (pin(pin(g, whole), divided),)
    gather.defvjp(lambda x: (pin(x, whole), None), back)
    return gather(array)

  def collect(weights, axes):
    divided = lambda names: tuple(RULES[name] for name in names)
    return jax.tree.map(
      lambda names, array: put(divided(names), array),
      axes,
      weights,
      is_leaf=lambda x: isinstance(x, tuple),
    )

  return collect if mesh.shape['fsdp'] > 1 else lambda weights, axes: weights


def gather_width(mesh: Mesh) -> Callable[[Array], Array]:
  """Returns a function that collects a head, [V, D], from `fsdp`.

  The value is unchanged, and V stays divided over `tensor`. For `make_learn`,
  whose loss reads the heads in a loop and would collect them at every turn.
  """
  sharding = NamedSharding(mesh, PartitionSpec(RULES['vocab']))
  return lambda head: jax.lax.with_sharding_constraint(head, sharding)


def batch_parts(mesh: Mesh) -> int:
  """Returns into how many parts the rows of a batch are divided."""
  return math.prod(mesh.shape[axis] for axis in BATCH)


def check_batch(mesh: Mesh, batch_size: int) -> None:
  """Raises ValueError when rows cannot be divided evenly over the mesh."""
  parts = batch_parts(mesh)
  if batch_size % parts:
    raise ValueError(
      f'a batch of {batch_size} rows cannot be divided over data * fsdp = '
      f'{parts}: choose a multiple of {parts}'
    )
