"""Wrong responses are distilled, right ones imitated (SCOPE).

From plain OPD, here by the sampled token, it differs in what becomes of a
response (arXiv 2604.10688): a wrong one is distilled, more where the teacher
finds it likely; a right one is imitated, more where the student finds it
unlikely. Both shares are a softmax over the group.

  jopd train --config=configs/variants/scope.py:tiny --workdir=runs/scope

Results: docs/variants.md. The signs are those of the paper's formula; its code
has the other one for right responses, `scale` 1.
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
      wrong=dict(
        objective='policy_gradient',
        surrogate='reinforce',
        advantage='log_ratio',
        weight=dict(name='group_softmax', of='target_logp', rows='wrong'),
      ),
      right=dict(
        objective='negative_log_likelihood',
        weight=dict(
          name='group_softmax', of='student_logp', scale=-1.0, rows='right'
        ),
      ),
    ),
    rollout=dict(temperature=0.6, top_k=0, top_p=1.0, min_p=0.0),
    loss_temperature=0.6,  # of the loss: what is sampled is what learns
    group_size=8,
    steps=200,
    batch_size=64,
    learning_rate=2e-6,
    warmup_steps=20,
    lr_schedule='cosine',
    eval_every=50,
    loss_chunk_tokens=2048,
  )
  return presets.tiny(config) if size == 'tiny' else config
