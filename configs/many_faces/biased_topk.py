"""The biased TopK reverse KL, which fails.

"The Many Faces of On-Policy Distillation" (arXiv 2605.11182), the second
failure mechanism. The one difference from opd.py: no stop-gradient on the
log-ratio, on the student's own 20 likeliest tokens. So the loss also falls when
mass leaves the support, down to 1/e of the teacher's mass there.

  jopd train --config=configs/many_faces/biased_topk.py:tiny \\
    --workdir=runs/biased_topk

Measured, tiny, seed 0: greedy accuracy 0.625 -> 0.000, teacher 1.000, while
its loss fell from 0.355 to 0.083. At its published size, without ':tiny', it
is not yet measured.
"""

import common


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  own = common.top_k(20, of='student', tail='drop')
  match = common.divergence('reverse_kl', support=own, demonstration=True)
  config = common.opd(size, loss=dict(match=match), **common.MANY_FACES)
  if size == 'tiny':
    # Of 384 tokens 20 hold nearly all mass, and the bias is of what is left.
    config.distil.loss.match.support.k = 4
  return config
