"""A curriculum of lengths that the student's entropy gates.

Responses are as long as a rung of a ladder. Every 50 steps the student answers
held-out prompts at that length; only while its entropy there is high enough it
climbs (arXiv 2605.16826). The loss is that paper's mixture of both KLs, most of
it forward, where plain OPD has the reverse KL. With one rung, the most tokens,
that mixture is what is left.

  jopd train --config=configs/variants/length_curriculum.py:tiny \\
    --workdir=runs/length_curriculum

Results: docs/variants.md. Lengths, threshold and mixture of the paper are not
known to us; it studied 128 to 4096 tokens. Where prompts have one right answer,
as with ':tiny', a good student has next to no entropy: the threshold is lower.
"""

from jopd.run import config as configs
from jopd.run import presets


def get_config(size='full'):
  """Returns the config; size 'tiny' is the recipe on a builtin task."""
  config = presets.mathematics(
    size, student='Qwen/Qwen3-0.6B', teacher='Qwen/Qwen3-4B'
  )
  full = size == 'full'
  rungs = (512, 1024, 2048, 4096) if full else (4, 8, 16)
  kl = lambda divergence, coef: dict(
    objective='divergence', divergence=divergence, coef=coef
  )
  config.stages = ('distil',)
  config.distil = configs.stage(
    teachers=dict(teacher='teacher'),
    loss=dict(forward=kl('forward_kl', 0.7), reverse=kl('reverse_kl', 0.3)),
    controllers=dict(
      length=dict(
        name='staged_curriculum', rungs=rungs, least=0.2 if full else 5e-4
      )
    ),
    rollout=dict(max_new_tokens=dict(controlled='length')),
    held_out=64,
    held_out_every=50,
    steps=400,
    batch_size=128,
    learning_rate=2e-6,
    warmup_steps=10,
    loss_chunk_tokens=2048,
  )
  return presets.tiny(config) if size == 'tiny' else config
