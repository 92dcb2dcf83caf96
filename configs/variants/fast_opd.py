"""Short responses first, which grow during training (Fast OPD).

One number differs from plain OPD (arXiv 2602.15260): a response ends after L
tokens, and L grows by the same amount at each step. Tokens beyond it are never
sampled and cost nothing. With the full L from the beginning it is plain OPD.

  jopd train --config=configs/variants/fast_opd.py:tiny --workdir=runs/fast_opd

Measured, tiny, three seeds: greedy accuracy 0.986, plain OPD 0.984; intervals
are in docs/variants.md. At its published size it is not yet measured. The
paper's lengths are not known to us; it finds most of the signal in the first
2000 to 4000 tokens.
"""

import common


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  longest = 4096 if size == 'full' else 16
  growing = common.linear(longest // 4, longest, steps=150)
  return common.opd(
    size, rollout=dict(max_new_tokens=growing), **common.LARGE_BATCH
  )
