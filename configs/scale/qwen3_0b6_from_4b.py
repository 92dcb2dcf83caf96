"""Qwen3-0.6B from Qwen3-4B on one GPU of 80 GB.

On-policy distillation on mathematics by the reverse KL over the whole
vocabulary, four responses to a prompt; see launch/gpu.sh.

  jopd train --config=configs/scale/qwen3_0b6_from_4b.py:tiny \\
    --workdir=runs/qwen3_0b6_from_4b

With ':tiny' the same stage trains small models on a builtin task. At its own
size it is not yet measured. A GPU cannot be compiled for without one, so `jopd
plan --topology=v5p:1x1x1` was asked about one TPU chip of 95 GiB instead:
learner 43 GiB, teacher 25. With 64 slots decoding wants 117, while its cache
grows; 24 need 56, which is 75 % of 80 GB. A GPU's compiler may want more.
docs/results.md has the table.
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
