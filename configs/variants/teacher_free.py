"""A control without a teacher: unlikely tokens are punished.

The advantage differs from OPD by the sampled token (arXiv 2608.31046): -1 for a
token with a probability below 0.2 under the student, whatever a teacher would
give it, and 0 for others. A method that is not better than this one has not
been shown to distil.

  jopd train --config=configs/variants/teacher_free.py:tiny \\
    --workdir=runs/teacher_free

Measured, tiny, three seeds: greedy accuracy 0.070, plain OPD 0.984; intervals
are in docs/variants.md. At its published size it is not yet measured. The
paper's threshold and advantage are not known to us.
"""

import common

from jopd.papers import teacher_free


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  unlikely = dict(name=teacher_free.against_unlikely, below=0.2, value=-1.0)
  return common.opd(
    size,
    teacher='',
    teachers={},
    loss=dict(advantage=common.policy_gradient(unlikely)),
  )
