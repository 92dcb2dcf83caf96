"""Weights are extrapolated along the direction of training (EffOPD).

After steps 1, 2, 4, 8, ... of plain OPD, the weights of attention and MLPs are
moved further along their change since the last such step: by twice that change,
four times, up to ten, as long as the reward on 64 held-out prompts improves
(arXiv 2605.11739). The held-out prompts are neither trained on nor evaluated
on. Where no such move is better it is plain OPD.

  jopd train --config=configs/variants/effopd.py:tiny --workdir=runs/effopd

Measured, tiny, three seeds: greedy accuracy 0.979, plain OPD 0.984; intervals
are in docs/variants.md. At its published size it is not yet measured. The rule
is that of the released code; the number of held-out prompts is ours.
"""

import common

from jopd.papers import effopd


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  extrapolation = dict(name=effopd.extrapolate_weights, reach=2.0, max_tries=5)
  return common.opd(
    size,
    callbacks=dict(extrapolation=extrapolation),
    held_out=64,
    **common.LARGE_BATCH,
  )
