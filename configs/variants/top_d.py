"""A teacher that stays near the student (TOP-D).

From plain OPD, here by the sampled token, it differs in the credit (arXiv
2607.04751): the log-ratio to an even mixture of teacher and student, then the
mean of those to come beside it, standardised over the responses to a prompt.
With share 1, and without the other two, it is plain OPD.

  jopd train --config=configs/variants/top_d.py:tiny --workdir=runs/top_d

Results: docs/variants.md. The formula is that of a pull request of another
library.
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
    loss=dict(
      advantage=dict(
        objective='policy_gradient',
        surrogate='reinforce',
        advantage=dict(
          name='whiten',
          advantage=dict(
            name='future_mean',
            own=1.0,
            advantage=dict(name='proximal_log_ratio', share=0.5),
          ),
        ),
      )
    ),
    group_size=4,
    steps=200,
    batch_size=16,
    learning_rate=2e-6,
    warmup_steps=20,
    lr_schedule='cosine',
    eval_every=50,
    loss_chunk_tokens=2048,
  )
  return presets.tiny(config) if size == 'tiny' else config
