"""Tokens count more before student and teacher part (IW-OPD).

From plain OPD it differs in the weight (arXiv 2606.22600): 1.5 at the first
token, falling to 1 with the share of the response's disagreement that lies
before. With most = 1 it is plain OPD.

  jopd train --config=configs/variants/iw_opd.py:tiny --workdir=runs/iw_opd

Results: docs/variants.md.
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
    loss=dict(
      match=dict(
        objective='divergence',
        divergence='reverse_kl',
        weight=dict(name='ahead_of_disagreement', most=1.5),
      )
    ),
    steps=200,
    batch_size=64,
    learning_rate=2e-6,
    warmup_steps=20,
    lr_schedule='cosine',
    eval_every=50,
    loss_chunk_tokens=2048,
  )
  return presets.tiny(config) if size == 'tiny' else config
