"""Old rollouts count by how fresh they still are (f-OPD).

The student learns what it wrote eight steps ago, each response weighted by its
age and by how far the student has moved on it since, and is charged for moving
away from the student of up to eight steps ago (arXiv 2605.17862). From plain
OPD differ the lag, this weight and this penalty. Without a lag, and with a
coefficient of 0, every weight is 1, and it is plain OPD.

  jopd train --config=configs/variants/f_opd.py:tiny --workdir=runs/f_opd

Results: docs/variants.md. The constants of the paper are not known to us; these
are ours, and so is the snapshot, which stands for the student that sampled. Its
refreshed buffer is left out.
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
    teachers=dict(teacher='teacher', before='student'),
    teacher_sync=dict(before=dict(name='periodic', every=8)),
    loss=dict(
      match=dict(
        objective='divergence',
        divergence='reverse_kl',
        weight=dict(name='freshness', alpha=1.0, least=0.0),
      ),
      stay=dict(
        objective='divergence',
        divergence='reverse_kl',
        target=dict(name='teacher', role='before'),
        coef=0.1,
      ),
    ),
    replay=dict(name='fixed_staleness', lag=8),
    steps=200,
    batch_size=128,
    learning_rate=2e-6,
    warmup_steps=10,
    loss_chunk_tokens=2048,
  )
  return presets.tiny(config) if size == 'tiny' else config
