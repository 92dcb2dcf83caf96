"""A strong student distilled from a weak teacher falls to the teacher's level.

What it had beyond its teacher is unlearnt, whether the teacher is its own past
or a larger model: scores go where the teacher is, not where the better of the
two was (Li et al., Rethinking On-Policy Distillation, arXiv 2604.13016).

Set-up: the student that full-vocabulary distillation made strong in
`topk_bias`, and 300 steps; as teachers the student that it was before, and a
larger model that saw fewer demonstrations.
"""

from founding.lab import LARGE, SUMS, matching

SIGNATURE = (
  'the student begins above 0.9, at least 0.2 above its own past',
  'from its own past: it ends within 0.15 of the teacher',
  'from the larger weak model: the same',
)
SHOWN = ('accuracy_after', 'accuracy_before', 'teacher')


def measure(lab) -> dict[str, dict[str, float]]:
  """Distils the strong student from each weak teacher."""
  strong = lab.distil('topk_bias/full vocabulary', matching('reverse_kl'))
  larger = lab.sft('weak_large', LARGE, data=SUMS | dict(count=280), steps=250)
  teachers = {'own past': lab.student(), 'larger weak model': larger}
  rows = {}
  for name, teacher in teachers.items():
    record = lab.distil(
      f'reverse/{name}',
      matching('reverse_kl'),
      student=strong.model,
      teacher=teacher,
      steps=300,
    )
    level = record.run.summary['teacher']
    rows[name] = dict(teacher=level) | record.row()
  return rows


def judge(rows) -> list[bool]:
  """The statements of SIGNATURE, in order."""
  past = rows['own past']
  near = lambda row: abs(row['accuracy_after'] - row['teacher']) <= 0.15
  start = past['accuracy_before']
  return [
    start > 0.9 and start - past['teacher'] >= 0.2,
    *map(near, rows.values()),
  ]
