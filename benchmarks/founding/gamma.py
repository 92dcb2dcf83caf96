"""Future rewards in a token's advantage are unbiased, noisy, and do not help.

With gamma = 0 the advantage of a token is its own log-ratio, with gamma = 1 the
sum of all from it on: the exact gradient of the sequence's KL, with a variance
that grows with the fourth power of the length instead of the second (Fu et al.,
Revisiting On-Policy Distillation, arXiv 2603.25562, section 3 and its toy
study).

Set-up: sums of twelve numbers, in responses of 15 tokens; a student and a
teacher made for them. Variances as in `variance`; then 150 steps with each
gamma.
"""

from founding.lab import LARGE, SMALL, SUMS
from founding.variance import discounted, spread

SIGNATURE = (
  'the variance of the gradient grows with gamma, at every step from 0 to 1',
  'at gamma 1 it is at least twice that at gamma 0',
  'trained with gamma 0, the student ends at least as accurate as with gamma 1',
)
SHOWN = ('variance', 'cosine', 'accuracy_after')
GAMMAS = (0.0, 0.5, 0.9, 1.0)
LONG = SUMS | dict(length=12)
TASK = dict(
  data=LONG,
  eval_data=LONG | dict(count=256, split='test'),
  max_prompt_tokens=24,
  max_response_tokens=18,
)


def measure(lab) -> dict[str, dict[str, float]]:
  """Takes gradients and trains, with each gamma."""
  teacher = lab.sft(
    'gamma/teacher', LARGE, run=TASK, steps=300, lr_schedule='cosine'
  )
  student = lab.sft(
    'gamma/student', SMALL, run=TASK, data=LONG | dict(count=250), steps=250
  )
  how = dict(run=TASK, teacher=teacher, student=student)
  losses = {f'gamma {gamma}': discounted(gamma) for gamma in GAMMAS}
  rows = spread(lab, 'gamma', losses, **how)
  for gamma in GAMMAS:
    record = lab.distil(f'gamma/{gamma}', discounted(gamma), **how)
    rows[f'gamma {gamma}'] |= record.row()
  return rows


def judge(rows) -> list[bool]:
  """The statements of SIGNATURE, in order."""
  variances = [rows[f'gamma {gamma}']['variance'] for gamma in GAMMAS]
  after = [rows[f'gamma {gamma}']['accuracy_after'] for gamma in GAMMAS]
  return [
    variances == sorted(variances),
    variances[-1] >= 2 * variances[0],
    after[0] >= after[-1],
  ]
