"""Local support matching on the teacher's likeliest tokens.

The method of "Revisiting On-Policy Distillation" (arXiv 2603.25562). The one
difference from sampled_token.py: the reverse KL on the teacher's 32 likeliest
tokens, both sides renormalised, with top-p rollouts. The tokens '<think>' and
'</think>', which the two models use differently, are masked.

  jopd train --config=configs/revisiting/local_support.py:tiny \\
    --workdir=runs/local_support

Measured, tiny, seed 0: greedy accuracy 0.625 -> 0.988, teacher 1.000. At its
published size, without ':tiny', it is not yet measured.
"""

import common


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  local = common.top_k(32, of='target', tail='renormalize')
  match = common.divergence('reverse_kl', support=local)
  return common.opd(
    size,
    student='Qwen/Qwen2.5-7B-Instruct',
    teacher='open-thoughts/OpenThinker3-7B',
    tokens=16384,
    loss=dict(match=match),
    rollout=dict(top_p=0.9),
    mask_tokens=('<think>', '</think>'),
    **common.REVISITING,
  )
