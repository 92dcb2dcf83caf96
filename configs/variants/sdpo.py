"""Own responses, judged by oneself with a right one at hand (SDPO).

From plain OPD it differs in the teacher (arXiv 2601.20802): it is a moving
average of the student, and reads another response of the group that was right.
From SDFT it differs in who gives the demonstration: nobody but the group. Where
no other response is right the teacher reads the prompt alone.

  jopd train --config=configs/variants/sdpo.py:tiny --workdir=runs/sdpo

Results: docs/variants.md. The average's decay is a guess. The paper leaves rows
without feedback out of the loss; here they count, with next to nothing to
teach.
"""

from jopd.run import config as configs
from jopd.run import presets


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  config = presets.mathematics(size, student='Qwen/Qwen3-4B')
  config.stages = ('distil',)
  config.distil = configs.stage(
    teachers=dict(teacher='student'),
    teacher_sync=dict(teacher=dict(name='ema', decay=0.98)),
    teacher_contexts=dict(teacher=dict(name='with_success')),
    max_teacher_prompt_tokens=5376,
    loss=dict(match=dict(objective='divergence', divergence='reverse_kl')),
    group_size=8,
    steps=200,
    batch_size=64,
    learning_rate=2e-6,
    warmup_steps=20,
    lr_schedule='cosine',
    eval_every=50,
    loss_chunk_tokens=2048,
  )
  if size == 'tiny':
    presets.tiny_told(config, hint='worked')
  return config
