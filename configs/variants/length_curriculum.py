"""A length curriculum that depends on the student's entropy.

The maximal response length takes the values `rungs`, one after the other. Every
50 steps the student answers held-out prompts at the present length, and goes on
to the next one if its entropy there is high enough (arXiv 2605.16826). The loss
is the paper's mixture of both KLs, where plain OPD has the reverse KL. With one
rung, the full length, only that mixture is left.

  jopd train --config=configs/variants/length_curriculum.py:tiny \\
    --workdir=runs/length_curriculum

Measured, tiny, three seeds: greedy accuracy 1.000, plain OPD 0.984; intervals
are in docs/variants.md. At its published size it is not yet measured. Lengths,
threshold and mixture of the paper are not known to us; it studied 128 to 4096
tokens. With ':tiny' each prompt has one right answer, so the entropy of a good
student is almost 0, and the threshold is lower.
"""

import common


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  full = size == 'full'
  return common.opd(
    size,
    student='Qwen/Qwen3-0.6B',
    teacher='Qwen/Qwen3-4B',
    loss=dict(
      forward=common.divergence('forward_kl', coef=0.7),
      reverse=common.divergence('reverse_kl', coef=0.3),
    ),
    callbacks=dict(
      held_out=dict(name='measure_held_out', every=50),
      length=dict(
        name='staged_curriculum',
        rungs=(512, 1024, 2048, 4096) if full else (4, 8, 16),
        threshold=0.2 if full else 5e-4,
      ),
    ),
    rollout=dict(max_new_tokens=dict(controlled='length')),
    held_out=64,
    **common.LARGE_BATCH | dict(steps=400),
  )
