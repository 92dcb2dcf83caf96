"""Qwen3-0.6B from Qwen3-4B on one GPU of 80 GB.

Plain on-policy distillation on mathematics: the reverse KL over the whole
vocabulary, four responses to a prompt. launch/gpu.sh starts it.

  jopd train --config=configs/scale/qwen3_0b6_from_4b.py:tiny \\
    --workdir=runs/qwen3_0b6_from_4b

With ':tiny' the same stage trains small models on a builtin task. At its own
size it is not yet measured. `jopd plan` cannot compile for a GPU without one;
`--topology=v5p:1x1x1`, one TPU chip of 95 GiB, gives instead: learner 43 GiB,
teacher 25, decoding of 64 responses at a time 117, of 24 at a time 56, which is
75 % of 80 GB. A GPU's compiler may need more. docs/results.md has the table.
"""

import common

# Machine -> its mesh, and what fits on it by a plan for TPUs.
MACHINES = {
  '1x80gb': dict(
    devices=1,
    mesh=dict(data=1, fsdp=1, tensor=1),
    gradient_accumulation_steps=16,
    max_num_seqs=24,
  ),
}


def get_config(machine='1x80gb'):
  """Returns the config for a machine, or in small: 'tiny'."""
  return common.at_scale(
    machine,
    MACHINES,
    student='Qwen/Qwen3-0.6B',
    teacher='Qwen/Qwen3-4B',
    batch_size=32,
  )
