"""The reverse KL of sequences, in two parts (MiniLLM).

From plain OPD it differs in one more term (arXiv 2306.08543): the reverse KL of
a token is exact, and what the token leads to is a policy gradient, whose credit
is the mean log-ratio of the tokens to come. A fifth of every token's
distribution is the teacher's, which importance weights make up for, as in the
paper token by token. With that share and the coefficient of the long part 0 it
is plain OPD.

  jopd train --config=configs/variants/minillm.py:tiny --workdir=runs/minillm

Results: docs/variants.md. It also learns from a corpus, which is not here.
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
    teacher_mixing=dict(teacher=dict(name='mixed', share=0.2)),
    loss=dict(
      single=dict(
        objective='divergence', divergence='reverse_kl', weight='importance'
      ),
      long=dict(
        objective='policy_gradient',
        surrogate='ppo_clip',
        advantage=dict(name='future_mean', own=0.0),
        old_policy='sampler',
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
