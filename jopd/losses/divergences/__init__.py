"""Divergences between two distributions over the same K categories.

Each takes (student_logp, target_logp), both [*B, K], and returns [*B] in nats.
The target is a constant. p is the student, q the target. Log-probs need not sum
to one: on a truncated support the sums simply run over the K that are there.
Most are a sum of q f(p / q), whose gradient at p = q is f'(1) times that of the
student's mass on the K: those with f'(1) = 0 rest at p = q on any support.

-inf counts as LOG_ZERO on either side: a category without mass adds exactly 0,
and a divergence that is infinite on paper (mass where the other side has none)
is about 1e9 times that mass, with a finite gradient.
"""

from jopd.losses.divergences.kl import (
  forward_kl,
  generalized_forward_kl,
  generalized_reverse_kl,
  reverse_kl,
  stop_gradient_reverse_kl,
)
from jopd.losses.divergences.mixed import (
  generalized_jsd,
  skew_forward_kl,
  skew_reverse_kl,
)
from jopd.losses.divergences.power import alpha_divergence, total_variation

__all__ = [
  'alpha_divergence',
  'forward_kl',
  'generalized_forward_kl',
  'generalized_jsd',
  'generalized_reverse_kl',
  'reverse_kl',
  'skew_forward_kl',
  'skew_reverse_kl',
  'stop_gradient_reverse_kl',
  'total_variation',
]
