"""Correct tokens that the hinted self finds unlikely (RLRT).

Two numbers differ from RLSD, rlsd.py (arXiv 2605.10781): the power is -1, so
that tokens which are unlikely for the teacher count more, and only the
advantages of correct responses are scaled. With power 0 it is GRPO.

  jopd train --config=configs/variants/rlrt.py:tiny --workdir=runs/rlrt

Measured, tiny, three seeds: greedy accuracy 1.000, GRPO and plain OPD 1.000;
intervals are in docs/variants.md. At its published size it is not yet measured.
Clip and mixture are not known to us; the clip is RLSD's, and the scale is not
mixed.
"""

import common


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  reward = common.policy_gradient(
    dict(name='scaled_advantage', power=-1.0, clip=0.2, mix=1.0, above=0.5),
    surrogate='ppo_clip',
    old_policy='sampler',
  )
  return common.self_distillation(
    size,
    teacher_sync=dict(teacher=dict(name='periodic', every=10)),
    loss=dict(reward=reward),
    group_size=8,
  )
