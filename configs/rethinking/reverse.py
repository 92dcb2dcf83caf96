"""A strong student distilled from its own weaker past.

"Rethinking On-Policy Distillation" (arXiv 2604.13016), the reverse experiment:
JustRL-1.5B from the model that it was before reinforcement learning. The one
difference from opd.py: student and teacher are swapped. The student falls to
the level of its teacher.

  jopd train --config=configs/rethinking/reverse.py:tiny --workdir=runs/reverse

Measured, tiny, seed 0: greedy accuracy 1.000 -> 0.715, teacher 0.164. At its
published size, without ':tiny', it is not yet measured.
"""

import common


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  own = common.top_k(16, of='student', tail='renormalize')
  match = common.divergence('reverse_kl', support=own)
  few = common.SUMS | dict(count=280)
  lessons = dict(
    teacher=dict(data=few, steps=250, lr_schedule='constant'),
    student=dict(data=common.SUMS, steps=600, lr_schedule='cosine'),
  )
  return common.opd(
    size,
    student='models/JustRL-1.5B',
    teacher='deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B',
    tokens=7168,
    lessons=lessons,
    loss=dict(match=match),
    **common.RETHINKING,
  )
