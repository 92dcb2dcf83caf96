"""The reward gives the direction, the hinted self the size (RLSD).

The role of the teacher differs from self-distillation,
configs/many_faces/opsd_rule.py (arXiv 2604.03128): it is not the target, but
scales the advantage of each token in GRPO. The share of that scale falls from
one half to 0 in 50 steps; from there on it is GRPO.

  jopd train --config=configs/variants/rlsd.py:tiny --workdir=runs/rlsd

Measured, tiny, three seeds: greedy accuracy 1.000, GRPO and plain OPD 1.000;
intervals are in docs/variants.md. At its published size it is not yet measured.
Clip, mixture and the renewal of the teacher are those of a re-implementation.
"""

import common


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  falling = common.linear(0.5, 0.0, steps=50)
  reward = common.policy_gradient(
    dict(name='scaled_advantage', power=1.0, clip=0.2, mix=falling),
    surrogate='ppo_clip',
    old_policy='sampler',
  )
  return common.self_distillation(
    size,
    teacher_sync=dict(teacher=dict(name='periodic', every=10)),
    loss=dict(reward=reward),
    group_size=8,
  )
