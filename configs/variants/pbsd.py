"""The told self is preferred to the bare one (PBSD).

From self-distillation, configs/many_faces/opsd_rule.py, it differs in the
objective (arXiv 2605.05040): the student and its told self answer each prompt,
and the student learns to prefer the latter's response to its own (DPO, with the
told self as the reference).

  jopd train --config=configs/variants/pbsd.py:tiny --workdir=runs/pbsd

Results: docs/variants.md. beta, and when the teacher is renewed, are not known
to us.
"""

from jopd.run import config as configs
from jopd.run import presets


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  config = presets.mathematics(size, student='Qwen/Qwen3-4B')
  config.stages = ('distil',)
  config.distil = configs.stage(
    teachers=dict(teacher='student'),
    teacher_contexts=dict(teacher=dict(name='with_solution')),
    max_teacher_prompt_tokens=5376,
    response_source=('student', 'teacher'),
    loss=dict(prefer=dict(objective='preference', beta=0.1)),
    loss_aggregation=dict(name='fixed_length', length=1),
    steps=200,
    batch_size=64,
    learning_rate=2e-6,
    warmup_steps=20,
    lr_schedule='cosine',
    eval_every=50,
    loss_chunk_tokens=2048,
  )
  return presets.tiny_told(config) if size == 'tiny' else config
