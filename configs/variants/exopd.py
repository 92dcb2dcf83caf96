"""A target beyond the teacher (ExOPD).

The target differs from OPD by the sampled token (arXiv 2602.12125): the initial
student, times the ratio of teacher to initial student to the power of 1.25. At
strength 1 it is OPD by the sampled token. Strengths beyond the extrapolation
cliff (arXiv 2605.08737) are refused.

  jopd train --config=configs/variants/exopd.py:tiny --workdir=runs/exopd

Measured, tiny, three seeds: greedy accuracy 0.802, the sampled token 0.810,
plain OPD 0.984; intervals are in docs/variants.md. At its published size it is
not yet measured. The formula of the cliff is derived here, and its three
numbers are examples: measure them at the token that decides the format.
"""

import common

from jopd.papers import exopd


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  cliff = exopd.extrapolation_cliff(mode=0.98, start=0.5, tail=0.0067)
  beyond = common.policy_gradient(
    'log_ratio',
    target=dict(name='extrapolated', strength=1.25, limit=cliff),
    weight=dict(name='importance', high=5.0),
  )
  return common.opd(
    size,
    teachers=dict(teacher='teacher', reference='student'),
    loss=dict(advantage=beyond),
    batch_size=1024,
  )
