"""Any two model folders on the builtin task, to try or to examine a pair.

The student learns from its own rollouts by the reverse KL to the teacher, over
the full vocabulary.

  jopd doctor --config=configs/pair.py:STUDENT_FOLDER,TEACHER_FOLDER

Not yet measured: the result depends on the pair.
"""

import common

from jopd.run.config import base


def get_config(folders='models/student,models/teacher'):
  """Returns the config; `folders` are two, with a comma between them."""
  student, comma, teacher = folders.partition(',')
  if not (student and comma and teacher):
    raise ValueError(f'expected STUDENT_FOLDER,TEACHER_FOLDER, got {folders!r}')
  config = base()
  config.models.student = dict(path=student)
  config.models.teacher = dict(path=teacher)
  config.data = common.SUMS
  config.eval_data = common.SUMS | dict(count=256, split='test')
  config.max_prompt_tokens, config.max_response_tokens = 32, 16
  config.stages = ('distil',)
  config.distil = common.distil(
    steps=150,
    learning_rate=2e-3,
    warmup_steps=10,
    eval_every=0,
    loss_chunk_tokens=256,
  )
  return config
