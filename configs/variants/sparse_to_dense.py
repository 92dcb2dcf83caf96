"""Rewards for the teacher, then a bridge, then distillation.

From plain OPD it differs in the stages before it (Sparse-to-Dense, arXiv
2605.12483): GRPO on the teacher, and a warm-up of the student on the teacher's
responses by the forward KL. Without the two it is plain OPD. The paper ends
with GRPO on the student; here that is left out.

  jopd train --config=configs/variants/sparse_to_dense.py:tiny \\
    --workdir=runs/sparse_to_dense

Results: docs/variants.md. With ':tiny' the teacher has seen 600 demonstrations,
so that rewards have something to teach it.
"""

from jopd.run import config as configs
from jopd.run import presets


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  config = presets.mathematics(
    size, student='Qwen/Qwen3-1.7B', teacher='Qwen/Qwen3-8B'
  )
  config.stages = ('adapt', 'bridge', 'distil')
  large = dict(learning_rate=2e-6, warmup_steps=20, lr_schedule='cosine')
  large['chunk_tokens'] = 2048
  clip = dict(name='ppo_clip', low=0.2, high=0.28)
  reward = dict(objective='policy_gradient', advantage='group_advantage')
  reward |= dict(surrogate=clip, old_policy='sampler')
  config.adapt = configs.stage(
    student='teacher',
    loss=dict(reward=reward),
    filter='nonzero_reward_std',
    group_size=8,
    num_minibatches=2,
    batch_size=32,
    steps=200,
    **large,
  )
  match = dict(objective='divergence')
  pull = lambda divergence: dict(match=match | dict(divergence=divergence))
  config.bridge = configs.stage(
    teachers=dict(teacher='teacher'),
    response_source='teacher',
    loss=pull('forward_kl'),
    steps=100,
    **large,
  )
  config.distil = configs.stage(
    teachers=dict(teacher='teacher'),
    loss=pull('reverse_kl'),
    steps=200,
    eval_every=50,
    **large,
  )
  if size == 'tiny':
    few = dict(data=presets.SUMS | dict(count=600), steps=250)
    presets.tiny(config, lessons=dict(teacher=few))
    config.bridge.steps = 50
  return config
