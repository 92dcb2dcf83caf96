"""Half of the steps train on earlier responses of the student.

The replay of DistiLLM (arXiv 2402.03898), by whole batches: a step samples new
responses with a probability that falls from 1 to one half, or else takes one of
the last 16 batches. The responses and their cost differ from plain OPD, since a
replayed step samples nothing, and so does the divergence, DistiLLM's skew
reverse KL. With fresh=1 every step samples.

  jopd train --config=configs/variants/replay_buffer.py:tiny \\
    --workdir=runs/replay

Measured, tiny, three seeds: greedy accuracy 0.975, plain OPD 0.984; intervals
are in docs/variants.md. At its published size it is not yet measured. The paper
draws single samples and adapts the probability to the validation loss; the
schedule and the size are ours.
"""

import common


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  falling = common.linear(1.0, 0.5, steps=100)
  replay = dict(name='replay_buffer', size=16, fresh=falling)
  skew = dict(name='skew_reverse_kl', alpha=0.1)
  return common.opd(
    size,
    loss=dict(match=common.divergence(skew)),
    callbacks=dict(replay=replay),
    **common.LARGE_BATCH,
  )
