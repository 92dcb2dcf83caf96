"""Toward the hinted self where certain, away where not (DASD).

The advantage differs from that of GRPO (arXiv 2605.22263): it adds a pull to
the student itself with the solution in its prompt. The pull changes its
direction where the student's entropy is high. With beta 0 it is GRPO.

  jopd train --config=configs/variants/dasd.py:tiny --workdir=runs/dasd

Measured, tiny, three seeds: greedy accuracy 0.667, GRPO and plain OPD 1.000;
one seed collapsed. Intervals are in docs/variants.md. At its published size it
is not yet measured. The paper's beta is not known to us. Another method of that
name, arXiv 2601.09088, distils sequences.
"""

import common

from jopd.papers import dasd


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  reward = common.policy_gradient(
    dict(name=dasd.entropy_directed, beta=0.1, quantile=0.2),
    surrogate='ppo_clip',
    old_policy='sampler',
  )
  return common.self_distillation(size, loss=dict(reward=reward), group_size=8)
