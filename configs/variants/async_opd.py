"""Distillation on rollouts that lag behind the learner (AsyncOPD).

The student learns what it wrote eight steps ago, as in a run that samples and
learns at the same time. From plain OPD nothing else differs: the exact
divergence is taken at the learner, of the student as it is now, which stands
stale rollouts better than a signal that was borrowed from the sampler
(arXiv 2606.24143). A lag of 0 is plain OPD.

  jopd train --config=configs/variants/async_opd.py:tiny --workdir=runs/async

Results: docs/variants.md. To see what recomputing spares, give the term
objective='policy_gradient', surrogate='reinforce' and anchor='sampler', with
weight='importance' or 'prefix_importance'.
"""

from jopd.run import config as configs
from jopd.run import presets


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  config = presets.mathematics(
    size, student='Qwen/Qwen3-1.7B', teacher='Qwen/Qwen3-8B'
  )
  config.stages = ('distil',)
  config.distil = configs.stage(
    teachers=dict(teacher='teacher'),
    loss=dict(match=dict(objective='divergence', divergence='reverse_kl')),
    replay=dict(name='fixed_staleness', lag=8),
    steps=200,
    batch_size=128,
    learning_rate=2e-6,
    warmup_steps=10,
    loss_chunk_tokens=2048,
  )
  return presets.tiny(config) if size == 'tiny' else config
