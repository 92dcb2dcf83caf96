"""Bounded advantages, and two phases of token selection (REOPOLD).

The advantage and the tokens differ from OPD by the sampled token (arXiv
2603.11137). The advantage has a floor. In the first half of training tokens at
the floor do not count, in the second half only the 50 % count where the
student's entropy is highest. Without a floor and with all tokens it is OPD by
the sampled token.

  jopd train --config=configs/variants/reopold.py:tiny --workdir=runs/reopold

Measured, tiny, three seeds: greedy accuracy 0.805, the sampled token 0.810,
plain OPD 0.984; intervals are in docs/variants.md. At its published size it is
not yet measured. The floor is log(0.2) / 0.8, as we derive it from the paper's
mixture; notes also give another form.
"""

import common


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""

  def phase(start: float, end: float, **weight) -> dict:
    """A term with a coefficient that jumps from start to end at step 100."""
    return common.policy_gradient(
      dict(name='clip', low=-2.0),
      old_policy='sampler',
      coef=common.linear(start, end, steps=1, after=100),
      weight=dict(name='normalized', weight=weight),
    )

  return common.opd(
    size,
    loss=dict(
      explore=phase(1.0, 0.0, name='gate', of='log_ratio', low=-2.0),
      refine=phase(
        0.0, 1.0, name='top_fraction', of='student_entropy', fraction=0.5
      ),
    ),
  )
