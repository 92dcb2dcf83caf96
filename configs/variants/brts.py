"""The best response of the teacher beside the student's own (BRTS).

It adds one term to plain OPD (arXiv 2605.09725). The teacher writes two
responses with the plain prompt and one with the answer in the prompt. The term
matches the best of them: a correct one if there is one, else the one that knew
the answer, and of several the one nearest to the student. With coefficient 0 it
is plain OPD.

  jopd train --config=configs/variants/brts.py:tiny --workdir=runs/brts

Measured, tiny, three seeds: greedy accuracy 0.954, plain OPD 0.961; intervals
are in docs/variants.md. At its published size it is not yet measured. The paper
uses the prompt with the answer only where it is needed; here it always does.
All responses are sampled at temperature 0.7.
"""

import common

from jopd.papers import brts


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  own = common.top_k(16, of='student', tail='bucket')
  best = common.top_k(16, of='target', tail='bucket')
  config = common.opd(
    size,
    teachers=dict(teacher='teacher', hinted='teacher'),
    teacher_contexts=dict(hinted=dict(name='with_answer')),
    max_teacher_prompt_tokens=1280,
    response_source=('student', 'student', 'teacher', 'teacher', 'hinted'),
    loss=dict(
      own=common.divergence('reverse_kl', support=own, rows='student'),
      chosen=common.divergence(
        'forward_kl',
        support=best,
        weight=brts.best_row,
        coef=0.05,
        rows=('teacher', 'hinted'),
      ),
    ),
    loss_aggregation='sequence_mean',
    rollout=dict(temperature=0.7, top_p=0.95),
  )
  if size == 'tiny':
    config.distil.teacher_contexts = dict(hinted=common.HINTED)
  return config
