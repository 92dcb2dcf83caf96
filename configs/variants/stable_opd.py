"""Gold solutions and a reference keep responses short (StableOPD).

It adds two terms to OPD by the sampled token (arXiv 2604.08527): imitation of a
gold solution beside every four rollouts, and a KL to the initial student. With
both coefficients 0 it is OPD by the sampled token.

  jopd train --config=configs/variants/stable_opd.py:tiny \\
    --workdir=runs/stable_opd

Measured, tiny, three seeds: greedy accuracy 0.927, the sampled token 0.859,
plain OPD 0.961; intervals are in docs/variants.md. At its published size it is
not yet measured. The coefficients are those of a port; the paper's are not
known to us.
"""

import common


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  return common.opd(
    size,
    teachers=dict(teacher='teacher', reference='student'),
    response_source=('student',) * 4 + ('dataset',),
    loss=dict(
      distil=common.policy_gradient(
        'log_ratio',
        surrogate='ppo_clip',
        old_policy='sampler',
        rows='student',
      ),
      gold=dict(objective='negative_log_likelihood', coef=0.1, rows='dataset'),
      stay=common.divergence(
        'reverse_kl',
        target=dict(name='teacher', role='reference'),
        coef=0.01,
        rows='student',
      ),
    ),
  )
