"""Another divergence for each writer: skew KLs (DistiLLM-2).

From plain OPD it differs in the writers (arXiv 2503.07067): the teacher answers
each prompt beside the student. On its text the student is pulled by the skew
forward KL, on the student's own by the skew reverse KL, each over its own
tokens, and the weight of the student's grows.

  jopd train --config=configs/variants/distillm2.py:tiny \\
    --workdir=runs/distillm2

Results: docs/variants.md. The paper also adapts both skews to each batch; they
are constants here.
"""

from jopd.run import config as configs
from jopd.run import presets


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  config = presets.mathematics(
    size, student='Qwen/Qwen3-1.7B', teacher='Qwen/Qwen3-8B'
  )
  config.stages = ('distil',)
  config.distil = configs.stage(
    teachers=dict(teacher='teacher'),
    response_source=('student', 'teacher'),
    loss=dict(
      own=dict(
        objective='divergence',
        divergence=dict(name='skew_reverse_kl', alpha=0.1),
        coef=dict(
          schedule='linear_schedule',
          init_value=0.5,
          end_value=1.0,
          transition_steps=200,
        ),
        rows='student',
      ),
      theirs=dict(
        objective='divergence',
        divergence=dict(name='skew_forward_kl', alpha=0.1),
        coef=0.5,
        rows='teacher',
      ),
    ),
    steps=200,
    batch_size=64,
    learning_rate=2e-6,
    warmup_steps=20,
    lr_schedule='cosine',
    eval_every=50,
    loss_chunk_tokens=2048,
  )
  return presets.tiny(config) if size == 'tiny' else config
