"""Self-distillation from a teacher that is told a rule that all prompts share.

"The Many Faces of On-Policy Distillation" (arXiv 2605.11182), where OPSD works.
The one difference from opsd_instance.py: what the teacher is told is the same
for all prompts, here to be concise. Such a rule survives the average.

  jopd train --config=configs/many_faces/opsd_rule.py:tiny \\
    --workdir=runs/opsd_rule

Measured, tiny, seed 0: greedy accuracy 0.066 -> 1.000, reverse KL 0.550 ->
0.000 nats. At its published size, without ':tiny', it is not yet measured.
"""

from jopd.run import config as configs
from jopd.run import presets

CONCISE = (
  'Reason as briefly as you can: no repetitions, no second thoughts that change'
  ' nothing, and only the steps that the answer needs.'
)


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  config = presets.mathematics(size, student='Qwen/Qwen3-8B')
  config.stages = ('distil',)
  config.distil = configs.stage(
    teachers=dict(teacher='student'),
    teacher_contexts=dict(teacher=dict(name='with_system', prompt=CONCISE)),
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
    rules = dict(name='shift', count=8192, length=4, modulus=10, rule=3)
    lesson = dict(
      data=rules | dict(rule=None, hint_fraction=0.5), steps=700, lr_schedule='cosine'
    )
    presets.tiny(config, data=rules, lessons=dict(student=lesson))
    config.models.student.update(presets.LARGE)
    told = dict(name='with_answer', template='{answer} + {prompt}')
    config.distil.teacher_contexts = dict(teacher=told)
    config.distil.steps, config.distil.learning_rate = 120, 1e-3
  return config
