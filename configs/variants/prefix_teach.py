"""Supervision that ends where the teacher loses its edge.

From plain OPD it differs in the weight (Prefix Teach, Suffix Fade, arXiv
2605.13643): a response is learnt up to the point at which the teacher's margin
on the student's likeliest tokens falls for good. Where none falls it is plain
OPD.

  jopd train --config=configs/variants/prefix_teach.py:tiny \\
    --workdir=runs/prefix_teach

Results: docs/variants.md. The margin's form is ours, the criterion that of a
port; its sentences are segments of 16 tokens here.
"""

from jopd.run import config as configs
from jopd.run import presets


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  config = presets.mathematics(
    size, student='Qwen/Qwen3-1.7B', teacher='Qwen/Qwen3-8B'
  )
  config.stages = ('distil',)
  segment = 16 if size == 'full' else 1
  config.distil = configs.stage(
    teachers=dict(teacher='teacher'),
    loss=dict(
      match=dict(
        objective='divergence',
        divergence='reverse_kl',
        support=dict(name='top_k', k=16, of='student', tail='bucket'),
        weight=dict(name='before_drop', of='margin', segment=segment, least=3),
      )
    ),
    steps=200,
    batch_size=64,
    learning_rate=2e-6,
    warmup_steps=20,
    lr_schedule='cosine',
    eval_every=50,
    loss_chunk_tokens=2048,
  )
  return presets.tiny(config) if size == 'tiny' else config
