"""Forward KL beside reverse where the teacher hesitates (EOPD).

From plain OPD, here by the sampled token, it differs in one more term (arXiv
2603.07079): the forward KL on the teacher's 16 likeliest tokens, where its
entropy is above 0.8 nats. With an infinite threshold it is plain OPD.

  jopd train --config=configs/variants/eopd.py:tiny --workdir=runs/eopd

Results: docs/variants.md. With ':tiny' the threshold is 0.05: that teacher
hardly ever hesitates. Both sides are renormalised on the 16; in the paper the
teacher is.
"""

from jopd.run import config as configs
from jopd.run import presets


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  config = presets.mathematics(
    size, student='Qwen/Qwen3-1.7B-Base', teacher='Qwen/Qwen3-8B'
  )
  config.stages = ('distil',)
  config.distil = configs.stage(
    teachers=dict(teacher='teacher'),
    loss=dict(
      reverse=dict(
        objective='policy_gradient',
        surrogate=dict(name='ppo_clip', low=0.2, high=0.2),
        advantage='log_ratio',
        old_policy='sampler',
      ),
      forward=dict(
        objective='divergence',
        divergence='forward_kl',
        support=dict(name='top_k', k=16, of='target', tail='renormalize'),
        weight=dict(
          name='gate',
          of='target_entropy',
          low=0.8 if size == 'full' else 0.05,
        ),
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
