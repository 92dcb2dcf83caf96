"""On-policy distillation on the student's likeliest tokens.

The recipe of "Rethinking On-Policy Distillation" (arXiv 2604.13016): the
reverse KL on the student's 16 likeliest tokens, renormalised. The teacher is
the student's base after reinforcement learning. The paper's sweep of response
lengths is --config.max_response_tokens, 512 to 15360; 3072 to 7168 did best.

  jopd train --config=configs/rethinking/opd.py:tiny --workdir=runs/opd

Measured, tiny, seed 0: greedy accuracy 0.625 -> 0.961, teacher 1.000. At its
published size, without ':tiny', it is not yet measured.
"""

import common


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  own = common.top_k(16, of='student', tail='renormalize')
  match = common.divergence('reverse_kl', support=own)
  return common.opd(
    size,
    student='deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B',
    teacher='models/JustRL-1.5B',
    tokens=7168,
    loss=dict(match=match),
    **common.RETHINKING,
  )
