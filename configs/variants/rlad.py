"""A trust region that the teacher moves (RLAD).

From GRPO it differs in what the ratio is taken to (arXiv 2602.22495): not what
sampled the token, but the geometric mean of that and the teacher. From plain
OPD it differs in the reward, which decides the direction. With anchor 'sampler'
it is GRPO.

  jopd train --config=configs/variants/rlad.py:tiny --workdir=runs/rlad

Results: docs/variants.md. The paper's exponent and coefficient are not known to
us.
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
    teachers=dict(teacher='teacher', reference='student'),
    loss=dict(
      reward=dict(
        objective='policy_gradient',
        surrogate='ppo_clip',
        advantage='group_advantage',
        old_policy=dict(name='geometric', sampler=0.5),
      ),
      stay=dict(
        objective='kl_estimate',
        estimator='k3',
        target=dict(name='teacher', role='reference'),
        coef=0.001,
      ),
    ),
    group_size=8,
    num_minibatches=2,
    steps=200,
    batch_size=64,
    learning_rate=2e-6,
    warmup_steps=20,
    lr_schedule='cosine',
    eval_every=50,
    loss_chunk_tokens=2048,
  )
  return presets.tiny(config) if size == 'tiny' else config
