"""Half of the tokens: unsure ones, and sure but wrong ones (TIP).

From plain OPD it differs in the weight (arXiv 2604.14084): only the half of the
tokens count that have the largest soft or of entropy and divergence. With
fraction 1 it is plain OPD.

  jopd train --config=configs/variants/tip.py:tiny --workdir=runs/tip

Results: docs/variants.md. How the paper normalises the two is not known to us.
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
        weight=dict(
          name='normalized',
          weight=dict(name='top_informative', fraction=0.5),
        ),
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
