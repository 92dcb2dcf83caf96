"""A raw top-K reverse KL rewards a student for leaving the support.

A truncated sum of p log(p / q) has a gradient where p = q: it pushes mass out
of the support. The loss falls, and so does the accuracy. A stop-gradient, a
bucket for the tail or renormalisation each remove the push (Zhu et al., The
Many Faces of On-Policy Distillation, arXiv 2605.11182).

Set-up: the running sum; a student with some of the skill, 150 steps on its own
rollouts towards a teacher that has it all, K = 4 of 384 tokens.
"""

from founding.lab import matching, top_k

SIGNATURE = (
  'raw, student support: loses half its accuracy, while its own loss falls'
  ' and its mass on the 16 likeliest of the teacher falls below 0.5',
  'raw, teacher support: the same',
  'stop-gradient on the teacher support ends above 0.9',
  'a tail bucket on the student support ends above 0.9',
  'renormalised on the student support ends above 0.9',
  'the full vocabulary ends above 0.9',
)
SHOWN = (
  'accuracy_after',
  'accuracy_before',
  'loss_before',
  'loss_after',
  'reverse_kl_after',
  'target_mass_after',
)
CURVES = True
VARIANTS = {
  'raw, student support': matching(
    'reverse_kl', top_k('student', 'drop'), demonstration=True
  ),
  'raw, teacher support': matching(
    'reverse_kl', top_k('target', 'drop'), demonstration=True
  ),
  'stop-gradient, student support': matching(
    'stop_gradient_reverse_kl', top_k('student', 'drop')
  ),
  'stop-gradient, teacher support': matching(
    'stop_gradient_reverse_kl', top_k('target', 'drop')
  ),
  'tail bucket, student support': matching(
    'reverse_kl', top_k('student', 'bucket')
  ),
  'renormalised, student support': matching(
    'reverse_kl', top_k('student', 'renormalize')
  ),
  'full vocabulary': matching('reverse_kl'),
}


def measure(lab) -> dict[str, dict[str, float]]:
  """Runs the variants."""
  return {
    name: lab.distil(f'topk_bias/{name}', terms).row()
    for name, terms in VARIANTS.items()
  }


def judge(rows) -> list[bool]:
  """The statements of SIGNATURE, in order."""
  return [
    *(_flees(rows[f'raw, {side} support']) for side in ('student', 'teacher')),
    *(
      rows[name]['accuracy_after'] > 0.9
      for name in (
        'stop-gradient, teacher support',
        'tail bucket, student support',
        'renormalised, student support',
        'full vocabulary',
      )
    ),
  ]


def _flees(row) -> bool:
  return (
    row['accuracy_after'] <= row['accuracy_before'] / 2
    and row['loss_after'] < row['loss_before']
    and row['target_mass_after'] < 0.5
  )
