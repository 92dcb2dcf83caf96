"""Distillation on a mixture of student and dataset responses (GKD).

Two settings differ from plain OPD (arXiv 2306.13649): the responses of a step
are the student's with probability lambda, else those of the dataset, and the
divergence is the generalised Jensen-Shannon. With lambda 1 and the reverse KL
it is plain OPD, with lambda 0 supervised distillation.

  jopd train --config=configs/variants/gkd.py:tiny --workdir=runs/gkd

Measured, tiny, three seeds: greedy accuracy 0.993, plain OPD 0.984; intervals
are in docs/variants.md. At its published size it is not yet measured. lambda
and beta are 0.5, the middle of the paper's range.
"""

import common


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  jsd = dict(name='generalized_jsd', beta=0.5)
  return common.opd(
    size,
    response_source=dict(student=0.5, dataset=0.5),
    loss=dict(match=common.divergence(jsd)),
  )
