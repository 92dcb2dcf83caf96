"""A strong student distilled from a weaker teacher of its own past.

"Rethinking On-Policy Distillation" (arXiv 2604.13016), the reverse experiment:
JustRL-1.5B from the model that it was before it learnt from rewards. The one
difference from opd.py: the two models have changed places. The student falls to
its teacher.

  jopd train --config=configs/rethinking/reverse.py:tiny \\
    --workdir=runs/reverse

Measured, tiny, seed 0: greedy accuracy 1.000 -> 0.715, teacher 0.164. At its
published size, without ':tiny', it is not yet measured.
"""

from jopd.run import config as configs
from jopd.run import presets


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  config = presets.mathematics(
    size,
    tokens=7168,
    student='models/JustRL-1.5B',
    teacher='deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B',
  )
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
    few, many = dict(presets.SUMS, count=280), dict(presets.SUMS)
    lessons = dict(
      teacher=dict(data=few, steps=250, lr_schedule='constant'),
      student=dict(data=many, steps=600, lr_schedule='cosine'),
    )
    presets.tiny(config, lessons=lessons)
  return config
