"""The outcome says where to, a told self how far (RLSD).

From self-distillation, configs/many_faces/opsd_rule.py, it differs in what the
teacher decides (arXiv 2604.03128): not the target, but the size of each token's
step in GRPO. The mixture falls from a half to 0 in 50 steps, and there it is
GRPO.

  jopd train --config=configs/variants/rlsd.py:tiny --workdir=runs/rlsd

Results: docs/variants.md. Clip, mixture and the teacher's renewal are those of
a re-implementation.
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
          name='scaled_advantage',
          power=1.0,
          clip=0.2,
          mix=dict(
            schedule='linear_schedule',
            init_value=0.5,
            end_value=0.0,
            transition_steps=50,
          ),
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
