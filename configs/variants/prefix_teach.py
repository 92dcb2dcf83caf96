"""Supervision that ends where the teacher loses its advantage.

The weight differs from plain OPD (Prefix Teach, Suffix Fade, arXiv 2605.13643):
a response counts up to the point from which the teacher's margin on the
student's likeliest tokens stays low. Where there is no such point it is plain
OPD.

  jopd train --config=configs/variants/prefix_teach.py:tiny \\
    --workdir=runs/prefix_teach

Measured, tiny, three seeds: greedy accuracy 0.947, plain OPD 0.984; intervals
are in docs/variants.md. At its published size it is not yet measured. The form
of the margin is ours, the criterion that of a port; the paper's sentences are
segments of 16 tokens here.
"""

import common

from jopd.papers import prefix_teach


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  segment = 16 if size == 'full' else 1
  match = common.divergence(
    'reverse_kl',
    support=common.top_k(16, of='student', tail='bucket'),
    weight=dict(
      name=prefix_teach.before_drop, of='margin', segment=segment, least=3
    ),
  )
  return common.opd(size, loss=dict(match=match))
