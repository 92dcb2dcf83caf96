"""Rewards for the teacher, a bridge, then distillation.

Two stages before it differ from plain OPD (Sparse-to-Dense, arXiv 2605.12483):
GRPO on the teacher, and a warm-up of the student on the teacher's responses by
the forward KL. Without the two it is plain OPD. The paper ends with GRPO on the
student; here that is left out.

  jopd train --config=configs/variants/sparse_to_dense.py:tiny \\
    --workdir=runs/sparse_to_dense

Measured, tiny, three seeds: greedy accuracy 0.996, plain OPD 0.958; intervals
are in docs/variants.md. At its published size it is not yet measured. With
':tiny' the teacher has seen 600 demonstrations, so that rewards can improve it.
"""

import common


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  config = common.mathematics(
    size, student='Qwen/Qwen3-1.7B', teacher='Qwen/Qwen3-8B'
  )
  config.stages = ('adapt', 'bridge', 'distil')
  config.adapt = common.grpo(student='teacher')
  config.bridge = common.distil(
    response_source='teacher',
    loss=dict(match=common.divergence('forward_kl')),
    steps=100,
    eval_every=0,
  )
  config.distil = common.distil()
  if size == 'tiny':
    few = dict(data=common.SUMS | dict(count=600), steps=250)
    common.tiny(config, lessons=dict(teacher=few))
    config.bridge.steps = 50
  return config
