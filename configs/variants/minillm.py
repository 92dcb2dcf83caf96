"""The reverse KL of sequences, in two parts (MiniLLM).

It adds one term to plain OPD (arXiv 2306.08543): the reverse KL at a token is
exact, and the effect of the token on later ones is a policy gradient with the
mean log-ratio of the later tokens as advantage. A fifth of the distribution
that is sampled from is the teacher's; importance weights correct for it, token
by token as in the paper. With that share and the coefficient of the long part 0
it is plain OPD.

  jopd train --config=configs/variants/minillm.py:tiny --workdir=runs/minillm

Measured, tiny, three seeds: greedy accuracy 0.964, plain OPD 0.984; intervals
are in docs/variants.md. At its published size it is not yet measured. The
paper's additional loss on a corpus is left out.
"""

import common


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  return common.opd(
    size,
    teacher_mixing=dict(teacher=dict(name='mixed', share=0.2)),
    loss=dict(
      single=common.divergence('reverse_kl', weight='importance'),
      long=common.policy_gradient(
        dict(name='future_mean', own=0.0),
        surrogate='ppo_clip',
        old_policy='sampler',
      ),
    ),
  )
