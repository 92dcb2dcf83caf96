"""Self-distillation from a teacher that is told the answer.

"The Many Faces of On-Policy Distillation" (arXiv 2605.11182), the third failure
mechanism. The one difference from opd.py: the teacher is the student itself, as
it was at the beginning, told the answer of each problem. What it is told
differs from prompt to prompt, and the student can only learn the average. (The
support is the whole vocabulary, as in scripts of the paper for such teachers.)

  jopd train --config=configs/many_faces/opsd_instance.py:tiny \\
    --workdir=runs/opsd_instance

Measured, tiny, seed 0: greedy accuracy 0.082 -> 0.129, reverse KL 0.856 ->
0.907 nats. At its published size, without ':tiny', it is not yet measured.
"""

from jopd.run import config as configs
from jopd.run import presets


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  config = presets.mathematics(size, student='Qwen/Qwen3-1.7B')
  config.stages = ('distil',)
  config.distil = configs.stage(
    teachers=dict(teacher='student'),
    teacher_contexts=dict(teacher=dict(name='with_answer')),
    max_teacher_prompt_tokens=1280,
    loss=dict(match=dict(objective='divergence', divergence='reverse_kl')),
    loss_aggregation='sequence_mean',
    rollout=dict(temperature=1.0, top_k=0, top_p=0.95, min_p=0.0),
    steps=300,
    batch_size=64,
    optimizer=dict(name='adamw', b2=0.98, weight_decay=0.1),
    learning_rate=2e-6,
    warmup_steps=30,
    lr_schedule='cosine',
    eval_every=50,
    loss_chunk_tokens=2048,
  )
  if size == 'tiny':
    rules = dict(name='shift', count=8192, length=4, modulus=10)
    lesson = dict(data=rules | dict(hint_fraction=0.5), steps=700, lr_schedule='cosine')
    presets.tiny(config, data=rules, lessons=dict(student=lesson))
    config.models.student.update(presets.LARGE)
    told = dict(name='with_answer', template='{answer} + {prompt}')
    config.distil.teacher_contexts = dict(teacher=told)
    config.distil.steps, config.distil.learning_rate = 120, 1e-3
  return config
