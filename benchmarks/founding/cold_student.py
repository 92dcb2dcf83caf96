"""A student that is not in the teacher's format gets no useful feedback.

The scores of a teacher on garbled prefixes teach nothing; a short imitation of
demonstrations first lets the same loss succeed (Zhu et al., The Many Faces of
On-Policy Distillation, arXiv 2605.11182, SFT-stabilised students).

Set-up: that of `topk_bias` with a student of 60 steps of imitation, cold, and
one of 250, warm.
"""

from founding.lab import matching, policy_gradient, top_k

SIGNATURE = (
  'cold: stop-gradient on the teacher support ends below 0.2',
  'cold: a tail bucket on the student support ends below 0.2',
  'cold: the sampled token ends below 0.2',
  'cold: the full vocabulary alone recovers, above 0.5',
  'warm: stop-gradient on the teacher support ends above 0.9',
  'warm: a tail bucket on the student support ends above 0.9',
)
SHOWN = (
  'accuracy_after',
  'accuracy_before',
  'reverse_kl_before',
  'reverse_kl_after',
  'student_entropy_before',
)
SAMPLED = dict(match=policy_gradient('log_ratio'))
VARIANTS = {
  'stop-gradient, teacher support': matching(
    'stop_gradient_reverse_kl', top_k('target', 'drop')
  ),
  'tail bucket, student support': matching(
    'reverse_kl', top_k('student', 'bucket')
  ),
  'sampled token': SAMPLED,
  'full vocabulary': matching('reverse_kl'),
}
COLD = 60


def measure(lab) -> dict[str, dict[str, float]]:
  """Runs the variants from the cold student, and from the warm one."""
  rows = {}
  for name, terms in VARIANTS.items():
    cold = lab.distil(f'cold_student/{name}', terms, student=lab.student(COLD))
    rows[f'cold: {name}'] = cold.row()
  for name in (
    'stop-gradient, teacher support',
    'tail bucket, student support',
  ):
    # The runs of `topk_bias`.
    rows[f'warm: {name}'] = lab.distil(
      f'topk_bias/{name}', VARIANTS[name]
    ).row()
  return rows


def judge(rows) -> list[bool]:
  """The statements of SIGNATURE, in order."""
  after = {name: row['accuracy_after'] for name, row in rows.items()}
  return [
    after['cold: stop-gradient, teacher support'] < 0.2,
    after['cold: tail bucket, student support'] < 0.2,
    after['cold: sampled token'] < 0.2,
    after['cold: full vocabulary'] > 0.5,
    after['warm: stop-gradient, teacher support'] > 0.9,
    after['warm: tail bucket, student support'] > 0.9,
  ]
