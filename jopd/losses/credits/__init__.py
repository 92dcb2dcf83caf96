"""How good the sampled token was: (TokenStats) -> [*B].

For `policy_gradient`. A credit must depend on the sampled token: one that is
the same whatever was sampled, such as a KL, has an expected gradient of zero.
A teacher's opinion depends on the token, an outcome on all that it led to.
"""

from jopd.losses.credits.combined import bounded, discounted
from jopd.losses.credits.outcomes import group_advantage, reward
from jopd.losses.credits.tokens import centered_log_ratio, log_ratio

__all__ = [
  'bounded',
  'centered_log_ratio',
  'discounted',
  'group_advantage',
  'log_ratio',
  'reward',
]
