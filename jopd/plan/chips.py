"""Chips and topologies, also of devices that are not here."""

import os
from typing import NamedTuple

import jax

from jopd.run.config import ConfigError, did_you_mean


class Chip(NamedTuple):
  """The data sheet of a device.

  Attributes:
    name: as in a topology.
    memory: bytes of its main memory.
    flops: matrix products in bfloat16, operations per second.
    bandwidth: of its main memory, bytes per second.
    links: to all of its neighbours together, bytes per second, one direction.
    clock: cycles per second; None if the compiler does not count cycles.
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
  """The devices of a topology, and their chip.

  Args:
    topology: a TPU generation and a shape in chips, such as 'v5p:4x4x4'; '' for
      the devices that are here.

  Returns:
    Devices for a mesh, and their chip; None if it is unknown, as for a CPU.
    Programs can be compiled for devices that are not here, but not run.

  Raises: ConfigError when there is no such topology, or no compiler for it.
  """
  if not topology:
    devices = jax.devices()
    return devices, of(devices[0])
  name, _, shape = topology.partition(':')
  tpus = [n for n, chip in CHIPS.items() if chip.clock]
  if name not in tpus or not shape:
    raise ConfigError(
      f"--topology={topology}: expected a TPU and a shape, such as 'v5p:4x4x4'"
      f'{did_you_mean(name, tpus)}'
    )
  # Without these libtpu queries a metadata server. They do not change the
  # topology that is compiled for.
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  os.environ.setdefault('TPU_ACCELERATOR_TYPE', 'v5litepod-8')
  os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')  # it takes no device
  from jax.experimental import topologies

  # The compiler assumes hosts of four chips.
  alone = set(shape.split('x')) == {'1'}
  host = dict(chips_per_host_bounds=(1, 1, 1)) if alone else {}
  try:
    devices = topologies.get_topology_desc(topology, 'tpu', **host).devices
  except (ImportError, RuntimeError, ValueError) as error:
    raise ConfigError(
      f'--topology={topology}: {_first_line(error)}; the compiler comes with'
      " pip install 'jopd[tpu]', shapes are those of Google's documentation"
    ) from error
  return list(devices), CHIPS[name]


def of(device: jax.Device) -> Chip | None:
  """The chip of a device that is here; None if its kind is unknown."""
  kind = device.device_kind
  for part, name in (_KINDS | {n: n for n in CHIPS}).items():
    if part in kind:
      return CHIPS[name]
  return None


def _first_line(error: Exception) -> str:
  return str(error).strip().splitlines()[0]
