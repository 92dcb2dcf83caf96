"""A good teacher that works in another way pulls a student down.

What counts is not the teacher's score but whether its way is within the
student's reach; the overlap of the two, measured before training, tells (Zhu et
al., arXiv 2605.11182, teachers adapted by rewards; Li et al., arXiv 2604.13016,
compatible thinking patterns).

Set-up: sums can be taken from the first number or from the last. The student
goes forward. The stranger is a larger model that goes backward and is right
more often than the student; the familiar teacher goes forward.
"""

from founding.lab import LARGE, SUMS, matching, top_k
from founding.variance import sampled
from jopd import config as configs

SIGNATURE = (
  'the stranger is right at least 0.2 more often than the student',
  'before training, its overlap with the student is the lower one and its'
  ' reverse KL the higher one',
  'from the stranger, with each loss: ends below its start',
  'from the familiar teacher, with each loss: gains at least 0.2',
)
SHOWN = (
  'accuracy_after',
  'accuracy_before',
  'teacher',
  'overlap_at_start',
  'reverse_kl_at_start',
)
LOSSES = {
  'sampled token': sampled(),
  'stop-gradient, teacher support': matching(
    'stop_gradient_reverse_kl', top_k('target', 'drop')
  ),
}


def measure(lab) -> dict[str, dict[str, float]]:
  """Distils from each teacher with each loss."""
  backward = SUMS | dict(direction='backward')
  teachers = {
    'stranger': lab.sft(
      'stranger', LARGE, data=backward, steps=900, decay='cosine'
    ),
    'familiar': lab.teacher(),
  }
  rows = {}
  for who, teacher in teachers.items():
    for loss, terms in LOSSES.items():
      name = f'{who}, {loss}'
      record = lab.distil(f'stranger/{name}', terms, teacher=teacher)
      rows[name] = record.row() | dict(
        teacher=record.run.summary['teacher'],
        overlap_at_start=float(record.trained('overlap')[0]),
        reverse_kl_at_start=float(record.trained('reverse_kl')[0]),
      )
  return rows


def adapted(lab) -> str:
  """The student after learning from rewards: a teacher in its own style.

  Not among the teachers of `measure` yet: no loss reads rewards so far.
  """
  config = lab.config()
  config.models.student = dict(path=lab.student())
  config.stages = ('adapt',)
  config.adapt = configs.stage(
    terms=dict(
      reward=dict(
        objective='policy_gradient',
        surrogate='clipped',
        credit=dict(name='group_advantage'),
      )
    ),
    batch_size=16,
    group_size=8,
    steps=200,
    learning_rate=1e-3,
    warmup_steps=10,
  )
  return lab.run('stranger/adapted', config).model


def judge(rows) -> list[bool]:
  """The statements of SIGNATURE, in order."""
  stranger, familiar = (
    [row for name, row in rows.items() if name.startswith(who)]
    for who in ('stranger', 'familiar')
  )
  gain = lambda row: row['accuracy_after'] - row['accuracy_before']
  overlap = lambda row: row['overlap_at_start']
  distance = lambda row: row['reverse_kl_at_start']
  return [
    stranger[0]['teacher'] >= stranger[0]['accuracy_before'] + 0.2,
    max(map(overlap, stranger)) < min(map(overlap, familiar))
    and min(map(distance, stranger)) > max(map(distance, familiar)),
    all(gain(row) < 0 for row in stranger),
    all(gain(row) >= 0.2 for row in familiar),
  ]
