"""A good teacher that works in another way pulls a student down.

The score of the teacher matters less than whether its way is within the
student's reach, which a comparison of both models before training shows (Zhu et
al., arXiv 2605.11182, teachers adapted by rewards; Li et al., arXiv 2604.13016,
compatible thinking patterns).

Set-up: sums can be taken from the first number or from the last. The student
goes forward. The stranger is a larger model that goes backward; the adapted
teacher is the student itself after learning from rewards; the familiar teacher
is a larger model that goes forward.
"""

from founding.lab import LARGE, SUMS, matching, top_k
from founding.variance import sampled_token
from jopd.run import config as configs

SIGNATURE = (
  'the stranger and the adapted teacher are right at least 0.2 more often than'
  ' the student, the stranger at least as often as the adapted one',
  'before training, of the three the stranger has the lowest overlap mass with'
  ' the student, and the highest reverse KL',
  'from the stranger, with each loss: ends below its start',
  'from the adapted teacher, with each loss: gains at least 0.2',
  'from the familiar teacher, with each loss: gains at least 0.2',
)
SHOWN = (
  'accuracy_after',
  'accuracy_before',
  'teacher',
  'overlap_mass_at_start',
  'overlap_advantage_at_start',
  'reverse_kl_at_start',
)
LOSSES = {
  'sampled token': sampled_token(),
  'stop-gradient, teacher support': matching(
    'stop_gradient_reverse_kl', top_k('target', 'drop')
  ),
}


def measure(lab) -> dict[str, dict[str, float]]:
  """Distils from each teacher with each loss."""
  backward = SUMS | dict(direction='backward')
  teachers = {
    'stranger': lab.sft(
      'stranger', LARGE, data=backward, steps=900, lr_schedule='cosine'
    ),
    'adapted': _adapted(lab),
    'familiar': lab.teacher(),
  }
  rows = {}
  for who, teacher in teachers.items():
    for loss, terms in LOSSES.items():
      name = f'{who}, {loss}'
      record = lab.distil(f'stranger/{name}', terms, teacher=teacher)
      first = {
        f'{metric}_at_start': float(record.trained(metric)[0])
        for metric in ('overlap_mass', 'overlap_advantage', 'reverse_kl')
      }
      level = record.run.summary['teacher']
      rows[name] = dict(teacher=level) | record.row() | first
  return rows


def _adapted(lab) -> str:
  """The student after learning from rewards: a teacher in its own style.

  With the settings of configs/many_faces/rlvr_teacher.py:tiny.
  """
  config = lab.config()
  config.models.student = dict(path=lab.student())
  config.stages = ('adapt',)
  config.adapt = configs.stage(
    loss=dict(
      reward=dict(
        objective='policy_gradient',
        surrogate=dict(name='ppo_clip', low=0.2, high=0.28),
        advantage=dict(name='group_advantage'),
        old_policy='sampler',
      )
    ),
    filter='nonzero_reward_std',
    steps=200,
    batch_size=16,
    group_size=8,
    num_minibatches=2,
    learning_rate=1e-3,
    warmup_steps=10,
    lr_schedule='cosine',
  )
  return lab.run('stranger/adapted', config).model


def judge(rows) -> list[bool]:
  """The statements of SIGNATURE, in order."""
  stranger, adapted, familiar = (
    [row for name, row in rows.items() if name.startswith(who)]
    for who in ('stranger', 'adapted', 'familiar')
  )
  before = stranger[0]['accuracy_before']
  lead = lambda who: who[0]['teacher'] - before
  gain = lambda row: row['accuracy_after'] - row['accuracy_before']
  mass = lambda row: row['overlap_mass_at_start']
  distance = lambda row: row['reverse_kl_at_start']
  return [
    lead(stranger) >= lead(adapted) >= 0.2,
    max(map(mass, stranger)) < min(map(mass, adapted + familiar))
    and min(map(distance, stranger)) > max(map(distance, adapted + familiar)),
    all(gain(row) < 0 for row in stranger),
    all(gain(row) >= 0.2 for row in adapted),
    all(gain(row) >= 0.2 for row in familiar),
  ]
