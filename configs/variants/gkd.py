"""Distillation on a mixture of own and given responses (GKD).

From plain OPD it differs in two settings (arXiv 2306.13649): a step's responses
are the student's with probability lambda, else those of the dataset, and the
divergence is the generalised Jensen-Shannon of both. With lambda 1 and reverse
KL it is plain OPD, with lambda 0 supervised distillation.

  jopd train --config=configs/variants/gkd.py:tiny --workdir=runs/gkd

Results: docs/variants.md. lambda and beta are 0.5, the middle of what the paper
tries.
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
    response_source=dict(student=0.5, dataset=0.5),
    loss=dict(
      match=dict(
        objective='divergence',
        divergence=dict(name='generalized_jsd', beta=0.5),
      )
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
