"""The device mesh, and the shardings of logical axes on it.

`data` and `fsdp` divide the batch; `fsdp` also divides the width of every
matrix and `tensor` its other side, so that parameters, gradients and optimizer
moments take 1 / (fsdp * tensor) of the memory per device. The compiler inserts
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
    data: replicas of the model, each with its own rows of the batch.
    fsdp: devices that share one replica and divide its rows.
    tensor: devices that process the same rows; keep them within one host. One
      of the three may be -1: all remaining devices.
    devices: all by default.

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
      f'a mesh of {text} does not use the {len(devices)} devices: set sizes '
      f'with product {len(devices)}, or one of them to -1'
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

  Moments are sharded as their parameter; everything else (counts, factored
  statistics) is replicated. A jitted `tx.init` needs it as `out_shardings`: its
  zeros do not depend on the parameters, so the compiler would put them on one
  device.

  Args:
    tx: the optimizer.
    params: arrays or their shapes.
    shardings: from `param_shardings`.
  """
  whole_sharding = NamedSharding(
    jax.tree.leaves(shardings)[0].mesh, PartitionSpec()
  )
  return optax.tree_map_params(
    tx,
    lambda moment, param, sharding: (
      sharding if moment.shape == param.shape else whole_sharding
    ),
    jax.eval_shape(tx.init, params),
    params,
    shardings,
    transform_non_params=lambda _: whole_sharding,
  )


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of arrays whose first axis is the batch."""
  return NamedSharding(mesh, PartitionSpec(BATCH))


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of replicated arrays."""
  return NamedSharding(mesh, PartitionSpec())


def make_global_array(tree: Any, sharding: NamedSharding) -> Any:
  """Returns host arrays as global arrays on the mesh.

  Args:
    tree: of arrays; if the sharding divides rows, those of this process.
    sharding: of every array.
  """
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)),
    tree,
  )


def local_rows(tree: Any) -> Any:
  """Returns the rows that this process holds, as NumPy arrays.

  The inverse of `make_global_array`.

  Args:
    tree: of scalars, and of arrays that are divided along the batch only.
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

  Raises: RuntimeError when the connection to another process is lost.
  """
  if jax.process_count() == 1:
    return np.asarray(array)[None]
  try:
    return multihost_utils.process_allgather(array)
  except ValueError as error:  # of the transport, not of the input
    raise RuntimeError(f'lost another process: {error}') from error


def largest(numbers: np.ndarray) -> int:
  """Returns the largest integer of all processes."""
  return int(from_hosts(np.max(numbers, keepdims=True)).max())


def whole(array: Array) -> np.ndarray:
  """Returns a sharded array as a NumPy array on every process."""
  if array.is_fully_addressable:
    return np.asarray(array)
  return multihost_utils.process_allgather(array, tiled=True)


def constrain_batch(mesh: Mesh) -> Callable[[Array], Array]:
  """Returns a sharding constraint on activations, for `make_model`.

  The first axis is divided as the batch; the others are not divided.
  """
  sharding = batch_sharding(mesh)
  return lambda x: jax.lax.with_sharding_constraint(x, sharding)


def by_rows(mesh: Mesh) -> Callable[[Callable], Callable]:
  """Returns a wrapper that runs f(x, weights) on the rows of each device.

  For `make_model`. The value is unchanged if f treats rows independently. The
  weights are gathered from `fsdp`; the compiler handles `tensor`.
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
  """Returns a wrapper that runs a kernel on the rows and heads of a device."""
  by_token = PartitionSpec(BATCH, None, RULES['heads'])
  by_head = PartitionSpec(BATCH, RULES['heads'])

  def divide(attend):
    def run(query, key, value, *, scale):
      return jax.shard_map(
        partial(attend, scale=scale),
        mesh=mesh,
        in_specs=(by_token, by_head, by_head),
        out_specs=by_token,
        # Kernels do not declare along which axes their results vary.
        check_vma=False,
      )(query, key, value)

    return run

  return divide


def gather_layer(mesh: Mesh) -> Callable[[Any, Any], Any]:
  """Returns a function that gathers the weights of a layer, for `make_model`.

  By default the TPU compiler cuts products over `fsdp` into a slice per device,
  and each slice reads and writes the whole sum.
  """

  def gather_array(divided, array):
    whole = [None if axis == 'fsdp' else axis for axis in divided]
    pin = lambda x, spec: jax.lax.with_sharding_constraint(
      x, NamedSharding(mesh, PartitionSpec(*spec))
    )
    gather = jax.custom_vjp(lambda x: pin(x, whole))
    # Gradients too are gathered first, or their product is cut into slices.
    back = lambda _, g: (pin(pin(g, whole), divided),)
    gather.defvjp(lambda x: (pin(x, whole), None), back)
    return gather(array)

  def collect(weights, axes):
    divided = lambda names: tuple(RULES[name] for name in names)
    return jax.tree.map(
      lambda names, array: gather_array(divided(names), array),
      axes,
      weights,
      is_leaf=lambda x: isinstance(x, tuple),
    )

  return collect if mesh.shape['fsdp'] > 1 else lambda weights, axes: weights


def gather_width(mesh: Mesh) -> Callable[[Array], Array]:
  """Returns a function that gathers a head [V, D] from `fsdp`.

  V stays divided over `tensor`. For `make_learn`, whose loss reads the heads in
  a loop and would gather them in every iteration.
  """
  sharding = NamedSharding(mesh, PartitionSpec(RULES['vocab']))
  return lambda head: jax.lax.with_sharding_constraint(head, sharding)


def batch_parts(mesh: Mesh) -> int:
  """Returns the number of parts that a batch is divided into."""
  return math.prod(mesh.shape[axis] for axis in BATCH)


def check_batch(mesh: Mesh, batch_size: int) -> None:
  """Raises ValueError when rows cannot be divided evenly over the mesh."""
  parts = batch_parts(mesh)
  if batch_size % parts:
    raise ValueError(
      f'a batch of {batch_size} rows cannot be divided over data * fsdp = '
      f'{parts}: choose a multiple of {parts}'
    )
