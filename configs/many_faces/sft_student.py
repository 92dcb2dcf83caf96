"""A student that imitates the teacher first, then distillation.

"The Many Faces of On-Policy Distillation" (arXiv 2605.11182), the third fix.
The one difference from opd.py: the student is a base model, and its own
responses are not yet attempts at the task. It first imitates correct responses
of the teacher, sampled here at temperature 0.3.

  jopd train --config=configs/many_faces/sft_student.py:tiny \\
    --workdir=runs/sft_student

Measured, tiny, seed 0: greedy accuracy 0.109 -> 0.746 by imitation -> 0.754,
teacher 1.000. At its published size, without ':tiny', it is not yet measured.
"""

import common


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  shared = common.top_k(20, of='intersection', tail='drop')
  match = common.divergence('stop_gradient_reverse_kl', support=shared)
  config = common.mathematics(
    size, student='Qwen/Qwen3-1.7B-Base', teacher='Qwen/Qwen3-4B'
  )
  config.stages = ('imitate', 'distil')
  config.imitate = common.imitation(
    teachers=dict(teacher='teacher'),
    response_source='teacher',
    rollout=dict(temperature=0.3),
    filter=dict(name='min_reward'),
    steps=470,
    warmup_steps=20,
  )
  config.distil = common.distil(loss=dict(match=match), **common.MANY_FACES)
  if size == 'tiny':
    # As unprepared as a base model: hardly any demonstrations before.
    common.tiny(config, lessons=dict(student=dict(steps=30)))
  return config
