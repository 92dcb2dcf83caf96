"""Qwen3-8B from Qwen3-32B on a Cloud TPU slice: v5p-64 or v5e-256.

Plain on-policy distillation on mathematics: the reverse KL over the whole
vocabulary, four responses to a prompt. launch/tpu_pod.sh and launch/xpk.sh
start it on all hosts of a slice.

  jopd train --config=configs/scale/qwen3_8b_from_32b.py:tiny \\
    --workdir=runs/qwen3_8b_from_32b

With ':tiny' the same stage trains small models on a builtin task. At its own
size it is not yet measured. By `jopd plan`, that is by the TPU compiler without
a TPU, a step of 512 full responses needs:

  v5p-64   80 of 95 GiB at most; learner at 49 to 51 %, teacher at 71 to 76 % of
           the peak; 253 to 265 s, of which decoding 179 to 186
  v5e-256  12 of 16 GiB at most; learner at 47 to 51 %, teacher at 70 to 75 %;
           71 to 104 s, of which decoding 49 to 80

docs/results.md has the table.
"""

import common

# Machine -> its mesh, and what fits on it by its plan.
MACHINES = {
  'v5p-64': dict(
    devices=32,
    mesh=dict(data=1, fsdp=8, tensor=4),
    gradient_accumulation_steps=4,
    max_num_seqs=256,
  ),
  'v5e-256': dict(
    devices=256,
    mesh=dict(data=1, fsdp=64, tensor=4),
    gradient_accumulation_steps=8,
    max_num_seqs=512,
  ),
}


def get_config(machine='v5p-64'):
  """Returns the config for a machine, or in small: 'tiny'."""
  return common.at_scale(
    machine,
    MACHINES,
    student='Qwen/Qwen3-8B',
    teacher='Qwen/Qwen3-32B',
    batch_size=128,
  )
