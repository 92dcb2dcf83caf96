"""Gold solutions and a reference keep responses short (StableOPD).

From plain OPD, here by the sampled token, it differs in two terms (arXiv
2604.08527): imitation of a gold solution beside every four rollouts, and a KL
to the student as it was. With both coefficients 0 it is plain OPD.

  jopd train --config=configs/variants/stable_opd.py:tiny \\
    --workdir=runs/stable_opd

Results: docs/variants.md. The coefficients are those of a port; the paper's are
not known to us.
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
    teachers=dict(teacher='teacher', reference='student'),
    response_source=('student',) * 4 + ('dataset',),
    loss=dict(
      distil=dict(
        objective='policy_gradient',
        surrogate='ppo_clip',
        advantage='log_ratio',
        old_policy='sampler',
        rows='student',
      ),
      gold=dict(objective='negative_log_likelihood', coef=0.1, rows='dataset'),
      stay=dict(
        objective='divergence',
        divergence='reverse_kl',
        target=dict(name='teacher', role='reference'),
        coef=0.01,
        rows='student',
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
