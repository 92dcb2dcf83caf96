"""On-policy distillation by the sampled token, as a policy gradient.

The baseline of "Revisiting On-Policy Distillation" (arXiv 2603.25562):
Qwen2.5-7B-Instruct from OpenThinker3-7B. The one difference from plain OPD: the
teacher is used at the sampled token only; its log-ratio there, log q - log p,
is the advantage of a policy gradient.

  jopd train --config=configs/revisiting/sampled_token.py:tiny \\
    --workdir=runs/sampled_token

Measured, tiny, seed 0: greedy accuracy 0.625 -> 0.918, teacher 1.000. At its
published size, without ':tiny', it is not yet measured.
"""

import common


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  sampled = common.policy_gradient('log_ratio', old_policy='sampler')
  return common.opd(
    size,
    student='Qwen/Qwen2.5-7B-Instruct',
    teacher='open-thoughts/OpenThinker3-7B',
    tokens=16384,
    loss=dict(advantage=sampled),
    **common.REVISITING,
  )
