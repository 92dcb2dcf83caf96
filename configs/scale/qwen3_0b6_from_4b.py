"""Qwen3-0.6B from Qwen3-4B on one GPU of 80 GB.

On-policy distillation on mathematics by the reverse KL over the whole
vocabulary, four responses to a prompt; see launch/gpu.sh.

  jopd train --config=configs/scale/qwen3_0b6_from_4b.py:tiny \\
    --workdir=runs/qwen3_0b6_from_4b

With ':tiny' the same stage trains small models on a builtin task. At its own
size it is not yet measured.
"""

from jopd import presets

# Machine -> its mesh, and what fits on it.
MACHINES = {
  '1x80gb': dict(
    devices=1, mesh=dict(data=1, fsdp=1, tensor=1), micro_batches=16, slots=64
  ),
}


def get_config(machine='1x80gb'):
  """Returns the config for a machine, or in small: 'tiny'."""
  return presets.at_scale(
    machine,
    MACHINES,
    student='Qwen/Qwen3-0.6B',
    teacher='Qwen/Qwen3-4B',
    batch_size=32,
  )
