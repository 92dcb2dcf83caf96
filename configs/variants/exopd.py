"""A reward that goes on beyond the teacher (ExOPD).

From plain OPD, here by the sampled token, it differs in the target (arXiv
2602.12125): the initial student times the 1.25th power of what the teacher adds
to it. At strength 1 it is plain OPD. Strengths beyond the extrapolation cliff
(arXiv 2605.08737) are refused.

  jopd train --config=configs/variants/exopd.py:tiny --workdir=runs/exopd

Results: docs/variants.md. The cliff's formula is derived here, and its three
numbers are examples: measure them where the format is decided.
"""

from jopd import losses
from jopd.run import config as configs
from jopd.run import presets


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  config = presets.mathematics(
    size, student='Qwen/Qwen3-1.7B', teacher='Qwen/Qwen3-8B'
  )
  config.stages = ('distil',)
  cliff = losses.extrapolation_cliff(mode=0.98, start=0.5, tail=0.0067)
  config.distil = configs.stage(
    teachers=dict(teacher='teacher', reference='student'),
    loss=dict(
      advantage=dict(
        objective='policy_gradient',
        surrogate='reinforce',
        advantage='log_ratio',
        target=dict(name='extrapolated', strength=1.25, limit=cliff),
        weight=dict(name='importance', high=5.0),
      )
    ),
    steps=200,
    batch_size=1024,
    learning_rate=2e-6,
    warmup_steps=20,
    lr_schedule='cosine',
    eval_every=50,
    loss_chunk_tokens=2048,
  )
  return presets.tiny(config) if size == 'tiny' else config
