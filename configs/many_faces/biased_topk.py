"""The biased TopK reverse KL, kept to show how it fails.

"The Many Faces of On-Policy Distillation" (arXiv 2605.11182), the second
failure mechanism. The one difference from opd.py: no stop-gradient on the
log-ratio, on the student's own 20 tokens. So the loss also falls where mass
leaves the support, down to 1/e of the teacher's mass there.

  jopd train --config=configs/many_faces/biased_topk.py:tiny \\
    --workdir=runs/biased_topk

Measured, tiny, seed 0: greedy accuracy 0.625 -> 0.000, teacher 1.000, while
its loss fell from 0.355 to 0.083. At its published size, without ':tiny', it
is not yet measured.
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
      match=dict(
        objective='divergence',
        divergence='reverse_kl',
        support=dict(name='top_k', k=20, of='student', tail='drop'),
        demonstration=True,
      )
    ),
    loss_aggregation='sequence_mean',
    rollout=dict(temperature=1.0, top_k=0, top_p=0.95, min_p=0.0),
    steps=1000,
    batch_size=64,
    optimizer=dict(name='adamw', b2=0.98, weight_decay=0.1),
    learning_rate=2e-6,
    warmup_steps=100,
    lr_schedule='cosine',
    eval_every=50,
    loss_chunk_tokens=2048,
  )
  if size == 'tiny':
    presets.tiny(config)
    # Of 384 tokens 20 hold nearly all mass, and the bias is of what is left.
    config.distil.loss.match.support.k = 4
  return config
