"""A baseline that is known, not learnt (vOPD).

From plain OPD by the sampled token it differs in the credit (arXiv 2605.07865):
the token's log-ratio above its mean, which is minus the reverse KL. The
gradient's expectation is the same, its variance as a rule lower.

  jopd train --config=configs/variants/vopd.py:tiny --workdir=runs/vopd

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
      advantage=dict(
        objective='policy_gradient',
        surrogate='reinforce',
        advantage='centered_log_ratio',
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
