"""On-policy distillation by the sampled token, as a policy gradient.

The baseline of "Revisiting On-Policy Distillation" (arXiv 2603.25562):
Qwen2.5-7B-Instruct from OpenThinker3-7B. The one difference from plain OPD: the
teacher's opinion of the sampled token alone, log q - log p, is its credit.

  jopd train --config=configs/revisiting/sampled_token.py:tiny \\
    --workdir=runs/sampled_token

Measured, tiny, seed 0: greedy accuracy 0.625 -> 0.918, teacher 1.000. At its
published size, without ':tiny', it is not yet measured.
"""

from jopd.run import config as configs
from jopd.run import presets


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  config = presets.mathematics(
    size,
    tokens=16384,
    student='Qwen/Qwen2.5-7B-Instruct',
    teacher='open-thoughts/OpenThinker3-7B',
  )
  config.stages = ('distil',)
  config.distil = configs.stage(
    teachers=dict(teacher='teacher'),
    loss=dict(
      advantage=dict(
        objective='policy_gradient',
        surrogate='reinforce',
        advantage='log_ratio',
        old_policy='sampler',
      )
    ),
    steps=400,
    batch_size=16,
    group_size=8,
    num_minibatches=2,
    learning_rate=2e-6,
    eval_every=50,
    loss_chunk_tokens=2048,
  )
  return presets.tiny(config) if size == 'tiny' else config
