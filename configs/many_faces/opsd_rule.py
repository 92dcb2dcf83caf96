"""Self-distillation from a teacher that reads a rule all prompts share.

"The Many Faces of On-Policy Distillation" (arXiv 2605.11182), where OPSD works.
The one difference from opsd_instance.py: the teacher reads the same instruction
with every prompt, here to be concise. Such a rule survives the average.

  jopd train --config=configs/many_faces/opsd_rule.py:tiny \\
    --workdir=runs/opsd_rule

Measured, tiny, seed 0: greedy accuracy 0.066 -> 1.000, reverse KL 0.550 ->
0.000 nats. At its published size, without ':tiny', it is not yet measured.
"""

import common

CONCISE = (
  'Reason as briefly as you can: no repetitions, no second thoughts that change'
  ' nothing, and only the steps that the answer needs.'
)


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  shorter = dict(steps=300, warmup_steps=30, max_teacher_prompt_tokens=1280)
  config = common.self_distillation(
    size,
    teacher_contexts=dict(teacher=dict(name='with_system', prompt=CONCISE)),
    **common.MANY_FACES | shorter,
  )
  if size == 'tiny':
    config.distil.teacher_contexts = dict(teacher=common.HINTED)
    config.distil.steps, config.distil.learning_rate = 120, 1e-3
  return config
