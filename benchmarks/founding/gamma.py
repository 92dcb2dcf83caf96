"""Future rewards in a token's credit are unbiased, noisy, and do not pay.

With gamma = 0 a token answers for its own log-ratio, with gamma = 1 for the
whole rest: the exact gradient of the sequence's KL, whose variance grows with
the fourth power of the length instead of the second (Fu et al., Revisiting
On-Policy Distillation, arXiv 2603.25562, section 3 and its toy study).

Set-up: variances as in `variance`; then 150 steps with each gamma.
"""

from founding.variance import discounted, spread

SIGNATURE = (
  'the variance of the gradient grows with gamma, at every step from 0 to 1',
  'at gamma 1 it is at least twice that at gamma 0',
  'trained with gamma 0, the student ends at least as accurate as with gamma 1',
)
SHOWN = ('variance', 'cosine', 'accuracy_after')
GAMMAS = (0.0, 0.5, 0.9, 1.0)


def measure(lab) -> dict[str, dict[str, float]]:
  """Takes gradients and trains, with each gamma."""
  losses = {f'gamma {gamma}': discounted(gamma) for gamma in GAMMAS}
  rows = spread(lab, 'gamma', losses)
  for gamma in GAMMAS:
    record = lab.distil(f'gamma/{gamma}', discounted(gamma))
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
