"""Right tokens that a told self would not have chosen (RLRT).

From RLSD, rlsd.py, it differs in two numbers (arXiv 2605.10781): the power is
-1, so that what the teacher finds unlikely counts more, and only right
responses are scaled. With power 0 it is GRPO.

  jopd train --config=configs/variants/rlrt.py:tiny --workdir=runs/rlrt

Results: docs/variants.md. Clip and mixture are not known to us; RLSD's clip is
used, and all of the scale.
"""

from jopd.run import config as configs
from jopd.run import presets


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  config = presets.mathematics(size, student='Qwen/Qwen3-8B')
  config.stages = ('distil',)
  config.distil = configs.stage(
    teachers=dict(teacher='student'),
    teacher_sync=dict(teacher=dict(name='periodic', every=10)),
    teacher_contexts=dict(teacher=dict(name='with_solution')),
    max_teacher_prompt_tokens=5376,
    loss=dict(
      reward=dict(
        objective='policy_gradient',
        surrogate='ppo_clip',
        old_policy='sampler',
        advantage=dict(
          name='scaled_advantage', power=-1.0, clip=0.2, mix=1.0, above=0.5
        ),
      )
    ),
    group_size=8,
    steps=200,
    batch_size=64,
    learning_rate=2e-6,
    warmup_steps=20,
    lr_schedule='cosine',
    eval_every=50,
    loss_chunk_tokens=2048,
  )
  return presets.tiny_told(config) if size == 'tiny' else config
