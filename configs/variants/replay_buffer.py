"""Half of the steps learn again from what the student said before.

The replay of DistiLLM (arXiv 2402.03898), by whole batches: a step samples anew
with a chance that falls from 1 to one half, or else takes one of the last 16
batches. From plain OPD differ what is learnt and what it costs: a replayed step
samples nothing. The divergence is DistiLLM's skewed reverse KL. With fresh = 1
every step samples.

  jopd train --config=configs/variants/replay_buffer.py:tiny \\
    --workdir=runs/replay

Results: docs/variants.md. The paper draws single samples, and lets the
validation loss decide how often; the schedule and the size are ours.
"""

from jopd.run import config as configs
from jopd.run import presets


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  config = presets.mathematics(
    size, student='Qwen/Qwen3-1.7B', teacher='Qwen/Qwen3-8B'
  )
  fresh = dict(init_value=1.0, end_value=0.5, transition_steps=100)
  skew = dict(name='skew_reverse_kl', alpha=0.1)
  config.stages = ('distil',)
  config.distil = configs.stage(
    teachers=dict(teacher='teacher'),
    loss=dict(match=dict(objective='divergence', divergence=skew)),
    replay=dict(
      name='buffer', size=16, fresh=dict(schedule='linear_schedule', **fresh)
    ),
    steps=200,
    batch_size=128,
    learning_rate=2e-6,
    warmup_steps=10,
    loss_chunk_tokens=2048,
  )
  return presets.tiny(config) if size == 'tiny' else config
