"""Which responses are learnt from: (rewards, lengths, ends) -> keep.

Host functions over [b, G] NumPy arrays, b prompts with G responses each. A row
that is not kept has no token in the loss, nor in its denominator. A filter that
needs rewards declares it with `losses.reads`.
"""

from collections.abc import Callable

import numpy as np

from jopd.losses import reads
from jopd.rollout.continuous_batching import STOP


@reads('row')
def keep_all(
  rewards: np.ndarray | None, lengths: np.ndarray, ends: np.ndarray
) -> np.ndarray:
  """All of them.

  Args:
    rewards: [b, G], or None where nobody grades.
    lengths: [b, G], tokens.
    ends: [b, G], how each ended; see `rollout/continuous_batching.py`.

  Returns:
    [b, G] bool, True is learnt from.
  """
  return np.ones(lengths.shape, bool)


@reads('group', reward=True)
def nonzero_reward_std(
  rewards: np.ndarray | None,
  lengths: np.ndarray,
  ends: np.ndarray,
  *,
  also: Callable = keep_all,
) -> np.ndarray:
  """Groups whose rewards differ; the others have no advantage to teach.

  Dropped, not sampled anew: the batch gets smaller. What is left then weighs
  as much as a full batch would.

  Args:
    rewards: [b, G].
    lengths: [b, G], tokens.
    ends: [b, G], how each ended.
    also: another rule that a row must fulfil.

  Returns:
    [b, G] bool, the same for all of a group but for `also`.

  References: Yu et al., DAPO, arXiv 2503.14476, section 3.2.
  """
  mixed = np.ptp(rewards, axis=1) > 0
  return mixed[:, None] & also(rewards, lengths, ends)


@reads('row')
def not_truncated(
  rewards: np.ndarray | None,
  lengths: np.ndarray,
  ends: np.ndarray,
  *,
  also: Callable = keep_all,
) -> np.ndarray:
  """Responses that came to their own end: a cut one says little of its reward.

  Args:
    rewards: [b, G], or None where nobody grades.
    lengths: [b, G], tokens.
    ends: [b, G], how each ended.
    also: another rule that a row must fulfil.

  Returns:
    [b, G] bool.

  References: Yu et al., DAPO, arXiv 2503.14476, section 3.4: overlong
    filtering.
  """
  return (ends == STOP) & also(rewards, lengths, ends)


@reads('row', reward=True)
def min_reward(
  rewards: np.ndarray | None,
  lengths: np.ndarray,
  ends: np.ndarray,
  *,
  least: float = 1.0,
  also: Callable = keep_all,
) -> np.ndarray:
  """Responses of enough reward: rejection sampling, before they are imitated.

  Args:
    rewards: [b, G].
    lengths: [b, G], tokens.
    ends: [b, G], how each ended.
    least: the smallest reward that is enough.
    also: another rule that a row must fulfil.

  Returns:
    [b, G] bool.
  """
  return (rewards >= least) & also(rewards, lengths, ends)
