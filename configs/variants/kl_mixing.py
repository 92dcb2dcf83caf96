"""Both directions of the KL, mostly forward (KL mixing).

The divergence differs from plain OPD (arXiv 2605.16826): 0.2 of the reverse KL
and 0.8 of the forward KL, which keeps entropy and length. With coefficients 1
and 0 it is plain OPD. The length curriculum of the same paper is
length_curriculum.py.

  jopd train --config=configs/variants/kl_mixing.py:tiny \\
    --workdir=runs/kl_mixing

Measured, tiny, three seeds: greedy accuracy 1.000, plain OPD 0.984; intervals
are in docs/variants.md. At its published size it is not yet measured. The
paper's grid of mixtures is not known to us.
"""

import common


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  return common.opd(
    size,
    student='Qwen/Qwen3-0.6B',
    teacher='Qwen/Qwen3-4B',
    loss=dict(
      reverse=common.divergence('reverse_kl', coef=0.2),
      forward=common.divergence('forward_kl', coef=0.8),
    ),
  )
