"""Prompts in the template of the teacher's training.

"Rethinking On-Policy Distillation" (arXiv 2604.13016), its second recipe. The
one difference from opd.py: every prompt is put into the template of the
teacher's own training. (The paper also takes the problems of that training;
those are a choice of config.data.)

  jopd train --config=configs/rethinking/aligned_prompts.py:tiny \\
    --workdir=runs/aligned_prompts

Measured, tiny, seed 0: greedy accuracy 0.566 -> 0.891, teacher 1.000. At its
published size, without ':tiny', it is not yet measured.
"""

import common


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  own = common.top_k(16, of='student', tail='renormalize')
  match = common.divergence('reverse_kl', support=own)
  config = common.opd(
    size,
    student='deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B',
    teacher='models/JustRL-1.5B',
    tokens=7168,
    loss=dict(match=match),
    **common.RETHINKING,
  )
  short = 'Question: {prompt} Answer:'
  template = short if size == 'tiny' else common.BOXED
  config.context = dict(name='with_template', template=template)
  return config
