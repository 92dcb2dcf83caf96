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

from jopd import config as configs
from jopd import presets


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  config = presets.mathematics(
    size, student='Qwen/Qwen3-1.7B', teacher='Qwen/Qwen3-8B'
  )
  config.stages = ('distil',)
  config.distil = configs.stage(
    teachers=dict(teacher='teacher'),
    blend=dict(teacher=dict(name='mixed', share=0.2)),
    terms=dict(
      single=dict(
        objective='matching', divergence='reverse_kl', weight='importance'
      ),
      long=dict(
        objective='policy_gradient',
        surrogate='clipped',
        credit=dict(name='mean_to_come', own=0.0),
        anchor='sampler',
      ),
    ),
    steps=200,
    batch_size=64,
    learning_rate=2e-6,
    warmup_steps=20,
    decay='cosine',
    eval_every=50,
    chunk_tokens=2048,
  )
  return presets.tiny(config) if size == 'tiny' else config
