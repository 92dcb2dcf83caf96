"""Chips and topologies: what a device has, and devices that are not here."""

import os
from typing import NamedTuple

import jax

from jopd.run.config import did_you_mean


class Chip(NamedTuple):
  """What a device can do, from its maker's data sheet.

  Attributes:
    name: as in a topology.
    memory: bytes of its large memory.
    flops: matrix products in bfloat16, operations a second.
    bandwidth: of its large memory, bytes a second.
    links: to all of its neighbours together, bytes a second, one direction.
    clock: cycles a second; None where the compiler does not count cycles.
  """

  name: str
  memory: float
  flops: float
  bandwidth: float
  links: float
  clock: float | None = None


_GIB = 2**30
# cloud.google.com/tpu/docs, and NVIDIA's data sheets (dense, not sparse). The
# clock of a TPU is its flops over those that its matrix units do in a cycle.
CHIPS = {
  'v4': Chip('v4', 32 * _GIB, 275e12, 1228e9, 300e9, 1.05e9),
  'v5e': Chip('v5e', 16 * _GIB, 197e12, 819e9, 200e9, 1.5e9),
  'v5p': Chip('v5p', 95 * _GIB, 459e12, 2765e9, 600e9, 1.75e9),
  'v6e': Chip('v6e', 32 * _GIB, 918e12, 1640e9, 448e9, 1.75e9),
  'A100': Chip('A100', 80e9, 312e12, 2039e9, 300e9),
  'H100': Chip('H100', 80e9, 989e12, 3350e9, 450e9),
  'H200': Chip('H200', 141e9, 989e12, 4800e9, 450e9),
}
_KINDS = {'v5 lite': 'v5e', 'v5p': 'v5p', 'v5': 'v5p', 'v6 lite': 'v6e'}


def find(topology: str) -> tuple[list[jax.Device], Chip | None]:
  """The devices of a topology, and what each of them can do.

  Args:
    topology: a TPU's generation and shape in chips, such as 'v5p:4x4x4'; ''
      is the devices that are here.

  Returns:
    Devices that a mesh takes, and their chip; None where it is not known, as
    of a CPU. Those that are not here can be compiled for and nothing else.

  Raises: ValueError when there is no such topology, or no compiler for it.
  """
  if not topology:
    devices = jax.devices()
    return devices, of(devices[0])
  name, _, shape = topology.partition(':')
  tpus = [n for n, chip in CHIPS.items() if chip.clock]
  if name not in tpus or not shape:
    raise ValueError(
      f"--topology={topology}: expected a TPU and a shape, such as 'v5p:4x4x4'"
      f'{did_you_mean(name, tpus)}'
    )
  # Without these libtpu asks a metadata server who it is. What is compiled for
  # is the topology asked for, whatever they say.
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  os.environ.setdefault('TPU_ACCELERATOR_TYPE', 'v5litepod-8')
  os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')  # it takes no device
  from jax.experimental import topologies

  # The compiler takes a host for four chips if it is not told.
  alone = set(shape.split('x')) == {'1'}
  host = dict(chips_per_host_bounds=(1, 1, 1)) if alone else {}
  try:
    devices = topologies.get_topology_desc(topology, 'tpu', **host).devices
  except (ImportError, RuntimeError, ValueError) as error:
    raise ValueError(
      f'--topology={topology}: {_first_line(error)}; the compiler comes with'
      " pip install 'jopd[tpu]', shapes are those of Google's documentation"
    ) from error
  return list(devices), CHIPS[name]


def of(device: jax.Device) -> Chip | None:
  """What a device that is here can do, as far as its kind is known."""
  kind = device.device_kind
  for part, name in (_KINDS | {n: n for n in CHIPS}).items():
    if part in kind:
      return CHIPS[name]
  return None


def _first_line(error: Exception) -> str:
  return str(error).strip().splitlines()[0]
