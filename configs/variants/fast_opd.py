"""Distillation on the beginnings of responses, which become longer (Fast OPD).

From plain OPD it differs in one number: a response ends after L tokens, and L
grows by as much at each step (arXiv 2602.15260). What is never sampled costs
nothing. With L at its most from the beginning it is plain OPD.

  jopd train --config=configs/variants/fast_opd.py:tiny --workdir=runs/fast_opd

Results: docs/variants.md. The lengths of the paper are not known to us: it
finds most of the signal in the first 2000 to 4000 tokens.
"""

from jopd.run import config as configs
from jopd.run import presets


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  config = presets.mathematics(
    size, student='Qwen/Qwen3-1.7B', teacher='Qwen/Qwen3-8B'
  )
  most = config.max_response_tokens if size == 'full' else 16
  config.stages = ('distil',)
  config.distil = configs.stage(
    teachers=dict(teacher='teacher'),
    loss=dict(match=dict(objective='divergence', divergence='reverse_kl')),
    rollout=dict(
      max_new_tokens=dict(
        schedule='linear_schedule',
        init_value=most // 4,
        end_value=most,
        transition_steps=150,
      )
    ),
    steps=200,
    batch_size=128,
    learning_rate=2e-6,
    warmup_steps=10,
    loss_chunk_tokens=2048,
  )
  return presets.tiny(config) if size == 'tiny' else config
