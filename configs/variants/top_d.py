"""A target between the teacher and the student (TOP-D).

The advantage differs from OPD by the sampled token (arXiv 2607.04751): the
log-ratio to an even mixture of teacher and student, plus the mean of those of
the later tokens, standardised over the responses to a prompt. With share 1, and
without the other two, it is OPD by the sampled token.

  jopd train --config=configs/variants/top_d.py:tiny --workdir=runs/top_d

Measured, tiny, three seeds: greedy accuracy 0.868, the sampled token 0.793,
plain OPD 0.900; intervals are in docs/variants.md. At its published size it is
not yet measured. The formula is that of a pull request of another library.
"""

import common

from jopd.papers import top_d


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  near = dict(name=top_d.proximal_log_ratio, share=0.5)
  later = dict(name='future_mean', own=1.0, advantage=near)
  whitened = dict(name=top_d.whiten, advantage=later)
  return common.opd(
    size,
    loss=dict(advantage=common.policy_gradient(whitened)),
    group_size=4,
    batch_size=16,
  )
