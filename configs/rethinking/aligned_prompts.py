"""Prompts in the words that the teacher was trained on.

"Rethinking On-Policy Distillation" (arXiv 2604.13016), its second recipe. The
one difference from opd.py: every prompt is put into the template of the
teacher's own training. (The paper also takes the problems of that training;
those are a choice of config.data.)

  jopd train --config=configs/rethinking/aligned_prompts.py:tiny \\
    --workdir=runs/aligned_prompts

Measured, tiny, seed 0: greedy accuracy 0.566 -> 0.891, teacher 1.000. At its
published size, without ':tiny', it is not yet measured.
"""

from jopd.run import config as configs
from jopd.run import presets

BOXED = (
  '{prompt}\n\nPlease reason step by step, and put your final answer within'
  ' \\boxed{}.'
)


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  config = presets.mathematics(
    size,
    tokens=7168,
    student='deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B',
    teacher='models/JustRL-1.5B',
  )
  config.context = dict(name='with_template', template=BOXED)
  config.stages = ('distil',)
  config.distil = configs.stage(
    teachers=dict(teacher='teacher'),
    loss=dict(
      match=dict(
        objective='divergence',
        divergence='reverse_kl',
        support=dict(name='top_k', k=16, of='student', tail='renormalize'),
      )
    ),
    steps=200,
    batch_size=64,
    group_size=4,
    learning_rate=1e-6,
    eval_every=50,
    loss_chunk_tokens=2048,
  )
  if size == 'tiny':
    presets.tiny(config)
    short = 'Question: {prompt} Answer:'
    config.context = dict(name='with_template', template=short)
  return config
