"""Distillation on rollouts of an older student (AsyncOPD).

A training step uses responses that the student wrote eight steps ago, as when
sampling and training run at the same time. Nothing else differs from plain OPD:
the learner computes the exact divergence of the present student, which
tolerates stale rollouts better than a signal computed at sampling time (arXiv
2606.24143). A staleness of 0 is plain OPD.

  jopd train --config=configs/variants/async_opd.py:tiny --workdir=runs/async

Measured, tiny, three seeds: greedy accuracy 0.974, plain OPD 0.984; intervals
are in docs/variants.md. At its published size it is not yet measured. For the
comparison with a borrowed signal, use a policy gradient with
old_policy='sampler', and weight='importance' or
jopd.papers.async_opd.prefix_importance.
"""

import common


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  return common.opd(
    size,
    callbacks=dict(replay=dict(name='fixed_staleness', staleness=8)),
    **common.LARGE_BATCH,
  )
