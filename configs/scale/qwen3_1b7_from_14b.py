"""Qwen3-1.7B from Qwen3-14B on one host with eight GPUs of 80 GB.

On-policy distillation on mathematics by the reverse KL over the whole
vocabulary, four responses to a prompt; see launch/gpu.sh.

  jopd train --config=configs/scale/qwen3_1b7_from_14b.py:tiny \\
    --workdir=runs/qwen3_1b7_from_14b

With ':tiny' the same stage trains small models on a builtin task. At its own
size it is not yet measured.
"""

from jopd import presets

# Machine -> its mesh, and what fits on it.
MACHINES = {
  '8x80gb': dict(
    devices=8, mesh=dict(data=1, fsdp=8, tensor=1), micro_batches=16, slots=256
  ),
}


def get_config(machine='8x80gb'):
  """Returns the config for a machine, or in small: 'tiny'."""
  return presets.at_scale(
    machine,
    MACHINES,
    student='Qwen/Qwen3-1.7B',
    teacher='Qwen/Qwen3-14B',
    batch_size=128,
  )
