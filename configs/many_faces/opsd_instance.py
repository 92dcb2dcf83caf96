"""Self-distillation from a teacher that reads the answer of each problem.

"The Many Faces of On-Policy Distillation" (arXiv 2605.11182), the third failure
mechanism. The one difference from opd.py: the teacher is the initial student,
and its prompt contains the answer. The answers differ from prompt to prompt, so
the student can only learn their average. (The support is the whole vocabulary,
as in the paper's scripts for such teachers.)

  jopd train --config=configs/many_faces/opsd_instance.py:tiny \\
    --workdir=runs/opsd_instance

Measured, tiny, seed 0: greedy accuracy 0.082 -> 0.129, reverse KL 0.856 ->
0.907 nats. At its published size, without ':tiny', it is not yet measured.
"""

import common


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  shorter = dict(steps=300, warmup_steps=30, max_teacher_prompt_tokens=1280)
  config = common.self_distillation(
    size,
    student='Qwen/Qwen3-1.7B',
    rule=None,
    teacher_contexts=dict(teacher=dict(name='with_answer')),
    **common.MANY_FACES | shorter,
  )
  if size == 'tiny':
    config.distil.steps, config.distil.learning_rate = 120, 1e-3
  return config
