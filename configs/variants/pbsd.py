"""A preference for the responses of the hinted self (PBSD).

The objective differs from self-distillation, configs/many_faces/opsd_rule.py
(arXiv 2605.05040): the student answers each prompt with and without the
solution in the prompt, and learns by DPO to prefer the response with it; the
reference is the student with the solution.

  jopd train --config=configs/variants/pbsd.py:tiny --workdir=runs/pbsd

Measured, tiny, three seeds: greedy accuracy 1.000, plain OPD 1.000; intervals
are in docs/variants.md. At its published size it is not yet measured. beta, and
when the teacher is renewed, are not known to us.
"""

import common


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  return common.self_distillation(
    size,
    student='Qwen/Qwen3-4B',
    response_source=('student', 'teacher'),
    loss=dict(prefer=dict(objective='preference', beta=0.1)),
    loss_aggregation=dict(name='fixed_length', length=1),
  )
