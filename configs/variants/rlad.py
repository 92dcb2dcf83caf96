"""A trust region that the teacher moves (RLAD).

The old policy differs from GRPO (arXiv 2602.22495): the geometric mean of the
sampler and the teacher in place of the sampler. The reward differs from plain
OPD, as it decides the direction. With old_policy='sampler' it is GRPO.

  jopd train --config=configs/variants/rlad.py:tiny --workdir=runs/rlad

Measured, tiny, three seeds: greedy accuracy 0.602, GRPO 0.573, plain OPD 0.900;
intervals are in docs/variants.md. At its published size it is not yet measured.
The paper's exponent and coefficient are not known to us.
"""

import common

from jopd.papers import rlad


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  return common.opd(
    size,
    teachers=dict(teacher='teacher', reference='student'),
    loss=dict(
      reward=common.policy_gradient(
        'group_advantage',
        surrogate='ppo_clip',
        old_policy=dict(name=rlad.geometric, sampler=0.5),
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
  )
