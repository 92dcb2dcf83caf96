"""Wrong responses are distilled, correct ones imitated (SCOPE).

The treatment of a response differs from OPD by the sampled token (arXiv
2604.10688): a wrong one is distilled, with a larger weight where it is likely
for the teacher; a correct one is imitated, with a larger weight where it is
unlikely for the student. Both weights are a softmax over the group.

  jopd train --config=configs/variants/scope.py:tiny --workdir=runs/scope

Measured, tiny, three seeds: greedy accuracy 0.500, the sampled token 0.793,
plain OPD 0.900; intervals are in docs/variants.md. At its published size it is
not yet measured. The signs are those of the paper's formula; its code has the
other one for correct responses, `scale` 1.
"""

import common

from jopd.papers import scope


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  share = lambda of, **settings: (
    dict(name=scope.group_softmax, of=of) | settings
  )
  return common.opd(
    size,
    loss=dict(
      wrong=common.policy_gradient(
        'log_ratio', weight=share('target_logp', rows='wrong')
      ),
      right=dict(
        objective='negative_log_likelihood',
        weight=share('student_logp', scale=-1.0, rows='right'),
      ),
    ),
    rollout=dict(temperature=0.6),
    loss_temperature=0.6,  # a policy gradient needs that of the rollouts
    group_size=8,
  )
