"""How good the sampled token was: (TokenStats) -> [*B].

For `policy_gradient`. An advantage must depend on the sampled token: one that is
the same whatever was sampled, such as a KL, has an expected gradient of zero.
A teacher's opinion depends on the token, an outcome on all that it led to.
"""

from jopd.losses.advantages.combined import (
  clip,
  discounted_return,
  future_mean,
  whiten,
)
from jopd.losses.advantages.outcomes import (
  entropy_directed,
  group_advantage,
  reward,
  scaled_advantage,
)
from jopd.losses.advantages.tokens import (
  against_unlikely,
  centered_log_ratio,
  log_ratio,
  proximal_log_ratio,
)

__all__ = [
  'against_unlikely',
  'clip',
  'centered_log_ratio',
  'discounted_return',
  'entropy_directed',
  'group_advantage',
  'log_ratio',
  'future_mean',
  'proximal_log_ratio',
  'reward',
  'scaled_advantage',
  'whiten',
]
