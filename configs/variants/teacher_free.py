"""The control without a teacher: unlikely tokens are charged.

From plain OPD it differs in the credit (arXiv 2608.31046): -1 for a token to
which the student gave less than 0.2, whatever a teacher would say, and 0 for
others. What does no better than this has not been shown to distil.

  jopd train --config=configs/variants/teacher_free.py:tiny \\
    --workdir=runs/teacher_free

Results: docs/variants.md. Threshold and size of the charge are not known to
us.
"""

from jopd.run import config as configs
from jopd.run import presets


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  config = presets.mathematics(size, student='Qwen/Qwen3-1.7B')
  config.stages = ('distil',)
  config.distil = configs.stage(
    loss=dict(
      advantage=dict(
        objective='policy_gradient',
        surrogate='reinforce',
        advantage=dict(name='against_unlikely', below=0.2, value=-1.0),
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
