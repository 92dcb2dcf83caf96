"""Old policies: what each reads."""

import functools

from jopd import losses
from jopd.losses import old_policies
from jopd.losses.token_stats import reads_of


# Kills a check by name: a policy gradient over stale tokens is refused by what
# its old policy declares.
def test_what_reads_the_sampler_is_declared():
  assert reads_of(old_policies.sampler) == losses.Reads(
    'token', reward=False, sampler=True
  )
  assert not reads_of(old_policies.student).sampler
  assert reads_of(lambda stats: 2 * stats.sampler_logp).sampler
  ratio = functools.partial(
    losses.policy_gradient, losses.reinforce, advantage=losses.log_ratio
  )
  assert losses.term_reads(
    losses.Term(ratio(old_policy=old_policies.sampler))
  ).sampler
  assert not losses.term_reads(losses.Term(ratio())).sampler
