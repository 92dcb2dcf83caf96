"""On-policy distillation from nothing, on a laptop.

Three stages on the builtin task, the running sum modulo 10 of six digits: a
teacher learns the task from demonstrations; a smaller student sees 280 of them,
too few to master it; then the student learns from its own rollouts, of which
the teacher scores every token. The loss is the stop-gradient TopK of "The Many
Faces of On-Policy Distillation" (arXiv 2605.11182), on the teacher's support
with a tail bucket. The file uses nothing of configs/common.py, so that a copy
of it is a start for a config of your own.

  jopd train --config=configs/quickstart.py --workdir=runs/quickstart

Measured: greedy accuracy on 256 held-out prompts, student 0.543 before and
1.000 after, teacher 1.000; 78 s on two CPU cores. docs/results.md has other
seeds.
"""

from jopd.run import config as configs


def get_config():
  """Returns the config."""
  config = configs.base()
  shape = dict(
    model_type='qwen3',
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    rope_theta=10_000.0,
    initializer_range=0.1,
    tie_word_embeddings=True,
  )
  config.models.teacher = shape | dict(
    hidden_size=128, intermediate_size=256, head_dim=32
  )
  config.models.student = shape | dict(
    hidden_size=64, intermediate_size=192, head_dim=16
  )
  config.data = dict(name='running_sum', count=8192, length=6, modulus=10)
  config.eval_data = dict(
    name='running_sum', count=256, length=6, modulus=10, split='test'
  )
  config.max_prompt_tokens = 16
  config.max_response_tokens = 16

  imitate = dict(demo=dict(objective='negative_log_likelihood'))
  config.stages = ('teach', 'warm', 'distil')
  config.teach = configs.stage(
    student='teacher',
    response_source='dataset',
    loss=imitate,
    steps=200,
    learning_rate=3e-3,
    warmup_steps=20,
    lr_schedule='cosine',
  )
  config.warm = configs.stage(
    response_source='dataset',
    data=dict(name='running_sum', count=280, length=6, modulus=10),
    loss=imitate,
    steps=250,
    learning_rate=3e-3,
    warmup_steps=20,
  )
  config.distil = configs.stage(
    teachers=dict(teacher='teacher'),
    loss=dict(
      match=dict(
        objective='divergence',
        divergence='stop_gradient_reverse_kl',
        support=dict(name='top_k', k=8, of='target', tail='bucket'),
      )
    ),
    steps=200,
    batch_size=128,
    learning_rate=2e-3,
    warmup_steps=10,
    lr_schedule='cosine',
    eval_every=50,
  )
  return config
