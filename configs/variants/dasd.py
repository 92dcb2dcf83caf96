"""To a told self where sure, away from it where not (DASD).

From self-distillation, configs/many_faces/opsd_rule.py, it differs in the
credit (arXiv 2605.22263): GRPO's advantage and a pull whose direction the
student's entropy decides. With beta 0 it is GRPO.

  jopd train --config=configs/variants/dasd.py:tiny --workdir=runs/dasd

Results: docs/variants.md. beta is not known to us. Another method of that name,
arXiv 2601.09088, distils sequences.
"""

from jopd.run import config as configs
from jopd.run import presets


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  config = presets.mathematics(size, student='Qwen/Qwen3-8B')
  config.stages = ('distil',)
  config.distil = configs.stage(
    teachers=dict(teacher='student'),
    teacher_contexts=dict(teacher=dict(name='with_solution')),
    max_teacher_prompt_tokens=5376,
    loss=dict(
      reward=dict(
        objective='policy_gradient',
        surrogate='ppo_clip',
        old_policy='sampler',
        advantage=dict(name='entropy_directed', beta=0.1, quantile=0.2),
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
