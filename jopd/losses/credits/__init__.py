"""How good the sampled token was: (TokenStats) -> [*B].

For `policy_gradient`. A credit must depend on the sampled token: one that is
the same whatever was sampled, such as a KL, has an expected gradient of zero.
A teacher's opinion depends on the token, an outcome on all that it led to.
"""

from jopd.losses.credits.combined import (
  bounded,
  discounted,
  mean_to_come,
  standardized,
)
from jopd.losses.credits.outcomes import (
  entropy_directed,
  group_advantage,
  reward,
  scaled_advantage,
)
from jopd.losses.credits.tokens import (
  against_unlikely,
  centered_log_ratio,
  log_ratio,
  proximal_log_ratio,
)

__all__ = [
  'against_unlikely',
  'bounded',
  'centered_log_ratio',
  'discounted',
  'entropy_directed',
  'group_advantage',
  'log_ratio',
  'mean_to_come',
  'proximal_log_ratio',
  'reward',
  'scaled_advantage',
  'standardized',
]
