"""Self-distillation with a correct response of the group (SDPO).

The teacher differs from plain OPD (arXiv 2601.20802): it is a moving average of
the student and reads another, correct response of the group. From SDFT it
differs in the demonstration, which comes from the group instead of the dataset.
Without another correct response the teacher reads the prompt alone.

  jopd train --config=configs/variants/sdpo.py:tiny --workdir=runs/sdpo

Measured, tiny, three seeds: greedy accuracy 0.667, plain OPD 1.000; one seed
collapsed after it had reached 1.000. Intervals are in docs/variants.md. At its
published size it is not yet measured. The decay of the average is a guess. The
paper leaves rows without feedback out of the loss; here they count, and teach
almost nothing.
"""

import common


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  return common.self_distillation(
    size,
    student='Qwen/Qwen3-4B',
    hint='worked',
    teacher_sync=dict(teacher=dict(name='ema', decay=0.98)),
    teacher_contexts=dict(teacher=dict(name='with_success')),
    group_size=8,
  )
