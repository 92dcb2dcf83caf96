"""One chosen response of the teacher beside the student's own (BRTS).

From plain OPD it differs in one more term (arXiv 2605.09725): of two responses
of the teacher the best is matched too: a right one if there is one, or else one
that was told the answer, and of several the one nearest to the student. With
coefficient 0 it is plain OPD.

  jopd train --config=configs/variants/brts.py:tiny --workdir=runs/brts

Results: docs/variants.md. The paper asks the told teacher only where it is
needed; here it always answers. One temperature, 0.7, for all writers.
"""

from jopd.run import config as configs
from jopd.run import presets


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  config = presets.mathematics(
    size, student='Qwen/Qwen3-1.7B', teacher='Qwen/Qwen3-8B'
  )
  config.stages = ('distil',)
  top = dict(name='top_k', k=16, tail='bucket')
  config.distil = configs.stage(
    teachers=dict(teacher='teacher', hinted='teacher'),
    teacher_contexts=dict(hinted=dict(name='with_answer')),
    max_teacher_prompt_tokens=1280,
    response_source=('student', 'student', 'teacher', 'teacher', 'hinted'),
    loss=dict(
      own=dict(
        objective='divergence',
        divergence='reverse_kl',
        support=top | dict(of='student'),
        rows='student',
      ),
      chosen=dict(
        objective='divergence',
        divergence='forward_kl',
        support=top | dict(of='target'),
        weight='best_row',
        coef=0.05,
        rows=('teacher', 'hinted'),
      ),
    ),
    loss_aggregation='sequence_mean',
    rollout=dict(temperature=0.7, top_k=0, top_p=0.95, min_p=0.0),
    steps=200,
    batch_size=64,
    learning_rate=2e-6,
    warmup_steps=20,
    lr_schedule='cosine',
    eval_every=50,
    loss_chunk_tokens=2048,
  )
  if size == 'tiny':
    presets.tiny(config)
    told = dict(name='with_answer', template='{answer} + {prompt}')
    config.distil.teacher_contexts = dict(hinted=told)
  return config
