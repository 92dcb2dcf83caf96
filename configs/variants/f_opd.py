"""Old rollouts are weighted by their freshness (f-OPD).

A training step uses responses that the student wrote eight steps ago. Each has
a weight that falls with its age and with the change of the student on it, and a
second term keeps the student near its copy of at most eight steps ago (arXiv
2605.17862). These three differ from plain OPD. With a staleness of 0 and a
coefficient of 0 it is plain OPD.

  jopd train --config=configs/variants/f_opd.py:tiny --workdir=runs/f_opd

Measured, tiny, three seeds: greedy accuracy 0.964, plain OPD 0.984; intervals
are in docs/variants.md. At its published size it is not yet measured. The
paper's constants are not known to us; these are ours. The copy stands for the
student that sampled. The paper's refreshed buffer is left out.
"""

import common

from jopd.papers import f_opd


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  return common.opd(
    size,
    teachers=dict(teacher='teacher', before='student'),
    teacher_sync=dict(before=dict(name='periodic', every=8)),
    loss=dict(
      match=common.divergence(
        'reverse_kl', weight=dict(name=f_opd.freshness, alpha=1.0, least=0.0)
      ),
      stay=common.divergence(
        'reverse_kl', target=dict(name='teacher', role='before'), coef=0.1
      ),
    ),
    callbacks=dict(replay=dict(name='fixed_staleness', staleness=8)),
    **common.LARGE_BATCH,
  )
