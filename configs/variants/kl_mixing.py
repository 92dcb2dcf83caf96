"""Both directions of the KL, most of it forward (KL mixing).

From plain OPD it differs in the divergence (arXiv 2605.16826): 0.2 of the
reverse KL and 0.8 of the forward one, which holds entropy and length. With
coefficients 1 and 0 it is plain OPD.

  jopd train --config=configs/variants/kl_mixing.py:tiny \\
    --workdir=runs/kl_mixing

Results: docs/variants.md. The paper's grid of mixtures is not known to us; the
length curriculum of the same paper is length_curriculum.py.
"""

from jopd.run import config as configs
from jopd.run import presets


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  config = presets.mathematics(
    size, student='Qwen/Qwen3-0.6B', teacher='Qwen/Qwen3-4B'
  )
  config.stages = ('distil',)
  config.distil = configs.stage(
    teachers=dict(teacher='teacher'),
    loss=dict(
      reverse=dict(objective='divergence', divergence='reverse_kl', coef=0.2),
      forward=dict(objective='divergence', divergence='forward_kl', coef=0.8),
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
