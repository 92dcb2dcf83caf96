"""Qwen3-1.7B from Qwen3-14B on one host with eight GPUs of 80 GB.

Plain on-policy distillation on mathematics: the reverse KL over the whole
vocabulary, four responses to a prompt. launch/gpu.sh starts it.

  jopd train --config=configs/scale/qwen3_1b7_from_14b.py:tiny \\
    --workdir=runs/qwen3_1b7_from_14b

With ':tiny' the same stage trains small models on a builtin task. At its own
size it is not yet measured. `jopd plan` cannot compile for a GPU without one;
`--topology=v5p:2x2x2`, eight TPU chips of 95 GiB, gives instead: decoding of
256 responses at a time 57 GiB, which is 77 % of 80 GB, learner 33 GiB. A GPU's
compiler may need more. docs/results.md has the table.
"""

import common

# Machine -> its mesh, and what fits on it by a plan for TPUs.
MACHINES = {
  '8x80gb': dict(
    devices=8,
    mesh=dict(data=1, fsdp=8, tensor=1),
    gradient_accumulation_steps=16,
    max_num_seqs=256,
  ),
}


def get_config(machine='8x80gb'):
  """Returns the config for a machine, or in small: 'tiny'."""
  return common.at_scale(
    machine,
    MACHINES,
    student='Qwen/Qwen3-1.7B',
    teacher='Qwen/Qwen3-14B',
    batch_size=128,
  )
