"""Weights that go on in the direction they have learnt (EffOPD).

Plain OPD, but after steps 1, 2, 4, 8, ... the weights of attention and MLPs are
tried further along their way since the last such step: twice that way, four
times, up to ten, as long as the reward of 64 held-out prompts improves (arXiv
2605.11739). The held-out prompts are neither learnt from nor those of the
evaluation. Where no place is better it is plain OPD.

  jopd train --config=configs/variants/effopd.py:tiny --workdir=runs/effopd

Results: docs/variants.md. The rule is that of the released code; the number of
held-out prompts is ours.
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
    weight_extrapolation=dict(name='line_search', reach=2.0, most=5),
    held_out=64,
    steps=200,
    batch_size=128,
    learning_rate=2e-6,
    warmup_steps=10,
    loss_chunk_tokens=2048,
  )
  return presets.tiny(config) if size == 'tiny' else config
