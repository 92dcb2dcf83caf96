"""Own responses, judged by oneself with a demonstration at hand (SDFT).

From plain OPD it differs in the teacher (arXiv 2601.19897): it is a moving
average of the student, and reads a demonstration after the prompt. What is
imitated by fine-tuning is learnt here from the student's own responses.

  jopd train --config=configs/variants/sdft.py:tiny --workdir=runs/sdft

Results: docs/variants.md. The average's decay is a guess.
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
    teacher_contexts=dict(teacher=dict(name='with_solution')),
    max_teacher_prompt_tokens=5376,
    loss=dict(match=dict(objective='divergence', divergence='reverse_kl')),
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
