"""Any two folders on the builtin task: to try a pair, or to have it examined.

The student learns from its own rollouts by the reverse KL to the teacher, over
the full vocabulary.

  jopd doctor --config=configs/pair.py:STUDENT_FOLDER,TEACHER_FOLDER

There is nothing to measure: what comes out, the pair decides.
"""

from jopd.run import config as configs
from jopd.run import presets


def get_config(folders='models/student,models/teacher'):
  """Returns the config; `folders` are two, with a comma between them."""
  student, comma, teacher = folders.partition(',')
  if not (student and comma and teacher):
    raise ValueError(f'expected STUDENT_FOLDER,TEACHER_FOLDER, got {folders!r}')
  config = configs.base()
  config.models.student = dict(path=student)
  config.models.teacher = dict(path=teacher)
  config.data = presets.SUMS
  config.eval_data = dict(presets.SUMS, count=256, split='test')
  config.max_prompt_tokens, config.max_response_tokens = 32, 16
  config.stages = ('distil',)
  config.distil = configs.stage(
    teachers=dict(teacher='teacher'),
    loss=dict(match=dict(objective='divergence', divergence='reverse_kl')),
    steps=150,
    learning_rate=2e-3,
    warmup_steps=10,
    lr_schedule='cosine',
  )
  return config
