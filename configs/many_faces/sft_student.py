"""A student that imitates the teacher first, then distillation.

"The Many Faces of On-Policy Distillation" (arXiv 2605.11182), the third fix.
The one difference from opd.py: the student is a base model whose own responses
are no attempts at the task yet; it first imitates those of the teacher's traces
that are right, sampled here, at temperature 0.3.

  jopd train --config=configs/many_faces/sft_student.py:tiny \\
    --workdir=runs/sft_student

Measured, tiny, seed 0: greedy accuracy 0.109 -> 0.746 by imitation -> 0.754,
teacher 1.000. At its published size, without ':tiny', it is not yet measured.
"""

from jopd.run import config as configs
from jopd.run import presets


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  config = presets.mathematics(
    size, student='Qwen/Qwen3-1.7B-Base', teacher='Qwen/Qwen3-4B'
  )
  config.stages = ('imitate', 'distil')
  config.imitate = configs.stage(
    teachers=dict(teacher='teacher'),
    response_source='teacher',
    filter=dict(name='min_reward'),
    loss=dict(demo=dict(objective='negative_log_likelihood')),
    rollout=dict(temperature=0.3, top_k=0, top_p=1.0, min_p=0.0),
    steps=470,
    batch_size=64,
    learning_rate=1e-5,
    warmup_steps=20,
    lr_schedule='cosine',
    loss_chunk_tokens=2048,
  )
  config.distil = configs.stage(
    teachers=dict(teacher='teacher'),
    loss=dict(
      match=dict(
        objective='divergence',
        divergence='stop_gradient_reverse_kl',
        support=dict(name='top_k', k=20, of='intersection', tail='drop'),
      )
    ),
    loss_aggregation='sequence_mean',
    rollout=dict(temperature=1.0, top_k=0, top_p=0.95, min_p=0.0),
    steps=1000,
    batch_size=64,
    optimizer=dict(name='adamw', b2=0.98, weight_decay=0.1),
    learning_rate=2e-6,
    warmup_steps=100,
    lr_schedule='cosine',
    eval_every=50,
    loss_chunk_tokens=2048,
  )
  if size == 'tiny':
    # A student as cold as a base model: next to no lessons of its own.
    presets.tiny(config, lessons=dict(student=dict(steps=30)))
  return config
