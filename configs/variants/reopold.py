"""Bounded credits, and two phases of which tokens count (REOPOLD).

From plain OPD, here by the sampled token, it differs in a floor of the credit
and in the tokens (arXiv 2603.11137): in the first half those at the floor do
not count, in the second only the half of which the student is least sure. With
no floor and all tokens it is plain OPD.

  jopd train --config=configs/variants/reopold.py:tiny --workdir=runs/reopold

Results: docs/variants.md. The floor is log(0.2) / 0.8, as we derive it from the
paper's mixture; notes also give another form.
"""

from jopd.run import config as configs
from jopd.run import presets


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  config = presets.mathematics(
    size, student='Qwen/Qwen3-1.7B', teacher='Qwen/Qwen3-8B'
  )
  config.stages = ('distil',)
  policy = dict(
    objective='policy_gradient',
    surrogate='reinforce',
    advantage=dict(name='clip', low=-2.0),
    old_policy='sampler',
  )
  turn = dict(
    schedule='linear_schedule', transition_begin=100, transition_steps=1
  )
  kept = lambda **weight: dict(name='normalized', weight=weight)
  config.distil = configs.stage(
    teachers=dict(teacher='teacher'),
    loss=dict(
      explore=policy
      | dict(
        coef=turn | dict(init_value=1.0, end_value=0.0),
        weight=kept(name='gate', of='log_ratio', low=-2.0),
      ),
      refine=policy
      | dict(
        coef=turn | dict(init_value=0.0, end_value=1.0),
        weight=kept(name='top_fraction', of='student_entropy', fraction=0.5),
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
