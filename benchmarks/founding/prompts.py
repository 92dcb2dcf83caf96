"""A teacher teaches best in the prompt template that it was trained on.

Prompts in the teacher's own template bring the two models together from the
start (Li et al., Rethinking On-Policy Distillation, arXiv 2604.13016:
teacher-aligned prompts).

Set-up: the teacher learnt running sums as 'Question: ... Answer:' only; the
student has read both forms, and knows both equally little. Then both read plain
prompts, or both the template, or only the teacher does.
"""

from founding.lab import IMITATE, LARGE, SUMS, matching
from jopd.run import config as configs

SIGNATURE = (
  'aligned prompts: less reverse KL at the first step than plain ones',
  'aligned prompts end at least 0.1 above plain ones',
  'a template for the teacher alone ends at least 0.1 above plain prompts',
)
SHOWN = (
  'accuracy_after',
  'accuracy_before',
  'teacher',
  'overlap_at_start',
  'reverse_kl_at_start',
)
TEMPLATE = dict(name='with_template', template='Question: {prompt} Answer:')
PLAIN = dict(max_prompt_tokens=24)
ALIGNED = PLAIN | dict(context=TEMPLATE)


def measure(lab) -> dict[str, dict[str, float]]:
  """Distils with each form of the prompts."""
  teacher = lab.sft(
    'prompts/teacher', LARGE, run=ALIGNED, steps=300, lr_schedule='cosine'
  )
  student = _reader_of_both(lab)
  hinted = dict(
    teacher_contexts=dict(teacher=TEMPLATE), max_teacher_prompt_tokens=24
  )
  how = {
    'plain': dict(run=PLAIN),
    'aligned': dict(run=ALIGNED),
    'aligned for the teacher': dict(run=PLAIN) | hinted,
  }
  rows = {}
  for name, settings in how.items():
    record = lab.distil(
      f'prompts/{name}',
      matching('reverse_kl'),
      student=student,
      teacher=teacher,
      **settings,
    )
    rows[name] = record.row() | dict(
      teacher=record.run.summary['teacher'],
      overlap_at_start=float(record.trained('overlap')[0]),
      reverse_kl_at_start=float(record.trained('reverse_kl')[0]),
    )
  return rows


def _reader_of_both(lab) -> str:
  """The student of the other findings, after some prompts in the template."""
  config = lab.config(**ALIGNED)
  config.models.student = dict(path=lab.student())
  config.stages = ('read',)
  config.read = configs.stage(
    response_source='dataset',
    data=SUMS | dict(count=280),
    loss=IMITATE,
    steps=60,
    learning_rate=1e-3,
  )
  return lab.run('prompts/student', config).model


def judge(rows) -> list[bool]:
  """The statements of SIGNATURE, in order."""
  plain, aligned, for_teacher = rows.values()
  gain = lambda row: row['accuracy_after'] - plain['accuracy_after']
  return [
    aligned['reverse_kl_at_start'] < plain['reverse_kl_at_start'],
    gain(aligned) >= 0.1,
    gain(for_teacher) >= 0.1,
  ]
