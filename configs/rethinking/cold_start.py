"""An off-policy cold start, then on-policy distillation.

"Rethinking On-Policy Distillation" (arXiv 2604.13016), its first recipe. The
one difference from opd.py: the student, a base model, first imitates 200,000
traces of the teacher from the file data/traces.jsonl (temperature 0.7, top-p
0.95, without truncated and repetitive ones).

  jopd train --config=configs/rethinking/cold_start.py:tiny \\
    --workdir=runs/cold_start

Measured, tiny, seed 0: greedy accuracy 0.109 -> 0.746 by imitation -> 0.996,
teacher 1.000. At its published size, without ':tiny', it is not yet measured.
"""

import common


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  own = common.top_k(16, of='student', tail='renormalize')
  match = common.divergence('reverse_kl', support=own)
  config = common.mathematics(
    size, tokens=7168, student='Qwen/Qwen3-1.7B-Base', teacher='Qwen/Qwen3-4B'
  )
  config.stages = ('imitate', 'distil')
  config.imitate = common.imitation(
    data=dict(name='jsonl', path='data/traces.jsonl'),
    steps=3125,
    warmup_steps=156,
  )
  config.distil = common.distil(loss=dict(match=match), **common.RETHINKING)
  if size == 'tiny':
    # As unprepared as a base model: hardly any demonstrations before.
    common.tiny(config, lessons=dict(student=dict(steps=30)))
  return config
