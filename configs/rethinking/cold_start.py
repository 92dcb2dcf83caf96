"""An off-policy cold start, then on-policy distillation.

"Rethinking On-Policy Distillation" (arXiv 2604.13016), its first recipe. The
one difference from opd.py: the student, a base model, first imitates a file of
200,000 traces of the teacher (its temperature 0.7, top-p 0.95; truncated and
repetitive ones left out), data/traces.jsonl.

  jopd train --config=configs/rethinking/cold_start.py:tiny \\
    --workdir=runs/cold_start

Measured, tiny, seed 0: greedy accuracy 0.109 -> 0.746 by imitation -> 0.996,
teacher 1.000. At its published size, without ':tiny', it is not yet measured.
"""

from jopd.run import config as configs
from jopd.run import presets


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  config = presets.mathematics(
    size, tokens=7168, student='Qwen/Qwen3-1.7B-Base', teacher='Qwen/Qwen3-4B'
  )
  config.stages = ('imitate', 'distil')
  config.imitate = configs.stage(
    response_source='dataset',
    data=dict(name='jsonl', path='data/traces.jsonl'),
    loss=dict(demo=dict(objective='negative_log_likelihood')),
    steps=3125,
    batch_size=64,
    learning_rate=1e-5,
    warmup_steps=156,
    lr_schedule='cosine',
    loss_chunk_tokens=2048,
  )
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
    # A student as cold as a base model: next to no lessons of its own.
    presets.tiny(config, lessons=dict(student=dict(steps=30)))
  return config
