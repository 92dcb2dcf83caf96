"""The Extrapolation Cliff in On-Policy Distillation, arXiv 2605.08737.

The limit of `losses.extrapolated`, the target of ExOPD (arXiv 2602.12125).
"""

import math

from jopd.losses.validation import check_range


def extrapolation_cliff(*, mode: float, start: float, tail: float) -> float:
  """The strength at which an extrapolated optimum leaves `tail` off its mode.

  (logit(1 - tail) - logit start) / (logit mode - logit start). One position and
  two outcomes: the optimum of `losses.extrapolated` has logit q = lambda
  logit p + (1 - lambda) logit b. Beyond the cliff the outcomes off the mode
  have less mass than `tail`, which importance clipping can no longer correct,
  and formats collapse. Measure p and b at the token that decides the format.

  Args:
    mode: p, the teacher's probability of its likeliest outcome, in (0, 1).
    start: b, the same outcome's under the policy that is extrapolated from.
    tail: tau, in (0, 1 - mode), the least mass off the mode; to be calibrated.

  Returns:
    lambda, above 1; infinite where the teacher is no more certain than the
    start.

  Gradients: none; plain numbers.
  Raises: ValueError when one of them is out of range.
  References: arXiv 2605.08737, known to us by its abstract, which does not give
    the formula: this is derived from the fixed point. It says 1.22 for b = 1/2.

  Example: p = 0.98 from b = 1/2, tail 0.0067; at 1 nothing is extrapolated.
    >>> round(extrapolation_cliff(mode=0.98, start=0.5, tail=0.0067), 3)
    1.284
    >>> round(extrapolation_cliff(mode=0.98, start=0.5, tail=0.02), 3)
    1.0
  """
  check_range('(0, 1)', mode=mode, start=start, tail=tail)
  if tail > 1 - mode + 1e-9:
    raise ValueError(
      f'tail must be at most 1 - mode = {1 - mode:g}, the mass that the teacher'
      f' leaves off its mode; got {tail}'
    )
  if mode <= start:
    return math.inf
  logit = lambda p: math.log(p) - math.log1p(-p)
  return (logit(1 - tail) - logit(start)) / (logit(mode) - logit(start))
