"""Qwen3-1.7B from Qwen3-14B on one host with eight GPUs of 80 GB.

On-policy distillation on mathematics by the reverse KL over the whole
vocabulary, four responses to a prompt; see launch/gpu.sh.

  jopd train --config=configs/scale/qwen3_1b7_from_14b.py:tiny \\
    --workdir=runs/qwen3_1b7_from_14b

With ':tiny' the same stage trains small models on a builtin task. At its own
size it is not yet measured.
"""

from jopd import config as configs
from jopd import presets

# Machine -> its mesh, and what fits on it.
MACHINES = {
  '8x80gb': dict(
    devices=8, mesh=dict(data=1, fsdp=8, tensor=1), micro_batches=16, slots=256
  ),
}


def get_config(machine='8x80gb'):
  """Returns the config for a machine, or in small: 'tiny'."""
  if machine not in (*MACHINES, 'tiny'):
    raise ValueError(
      f'no machine {machine!r}{configs.did_you_mean(machine, MACHINES)}'
    )
  size = 'tiny' if machine == 'tiny' else 'full'
  config = presets.mathematics(
    size, tokens=8192, student='Qwen/Qwen3-1.7B', teacher='Qwen/Qwen3-14B'
  )
  config.stages = ('distil',)
  config.distil = configs.stage(
    teachers=dict(teacher='teacher'),
    terms=dict(match=dict(objective='matching', divergence='reverse_kl')),
    steps=200,
    batch_size=128,
    group_size=4,
    learning_rate=2e-6,
    warmup_steps=10,
    chunk_tokens=2048,
    eval_every=50,
  )
  if machine == 'tiny':
    return presets.tiny(config)
  machine = MACHINES[machine]
  config.mesh.update(machine['mesh'])
  config.distil.micro_batches = machine['micro_batches']
  config.distil.slots = machine['slots']
  config.eval.batch_size = machine['slots']
  config.checkpoint.every = 25
  return presets.published(config)
