"""The student writes, and the teacher replaces what it would hardly say.

A token that is not among the teacher's 25 likeliest is replaced by one of the
teacher's (Speculative KD, arXiv 2410.11325), so that early on the student does
not learn from prefixes that nobody will see later. From plain OPD differ the
samples alone, here with its reverse KL. With k the whole vocabulary it is plain
OPD.

  jopd train --config=configs/variants/speculative_kd.py:tiny \
    --workdir=runs/speculative_kd

Results: docs/variants.md. That a replacement is drawn from all that the teacher
has is how we read the abstract. The small form has a k of 2.
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
    teacher_mixing=dict(teacher=dict(name='speculative', k=25)),
    loss=dict(match=dict(objective='divergence', divergence='reverse_kl')),
    steps=200,
    batch_size=128,
    learning_rate=2e-6,
    warmup_steps=10,
    loss_chunk_tokens=2048,
  )
  if size == 'tiny':
    config.distil.teacher_mixing.teacher.k = 2  # of some 60 tokens
    presets.tiny(config)
  return config
