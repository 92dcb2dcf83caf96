"""Tokens count more before student and teacher diverge (IW-OPD).

The weight differs from plain OPD (arXiv 2606.22600): 1.5 at the first token,
falling to 1 with the share of the response's disagreement that lies before the
token. With most=1 it is plain OPD.

  jopd train --config=configs/variants/iw_opd.py:tiny --workdir=runs/iw_opd

Measured, tiny, three seeds: greedy accuracy 0.970, plain OPD 0.984; intervals
are in docs/variants.md. At its published size it is not yet measured.
"""

import common

from jopd.papers import iw_opd


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  weight = dict(name=iw_opd.ahead_of_disagreement, most=1.5)
  match = common.divergence('reverse_kl', weight=weight)
  return common.opd(size, loss=dict(match=match))
