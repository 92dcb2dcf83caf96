"""A tiny run, made from a config the way the console command makes it."""

import pytest

from jopd import build, config


def tiny(**overrides):
  """Two stages on the builtin task, seconds long: SFT, then distillation."""
  made = config.base()
  sizes = dict(
    model_type='qwen3',
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=8,
    rope_theta=10_000.0,
    initializer_range=0.1,
  )
  made.models.teacher = dict(sizes)
  made.models.student = dict(sizes)
  made.data = dict(name='running_sum', count=64, length=3)
  made.eval_data = dict(name='running_sum', count=16, length=3, split='test')
  made.max_prompt_tokens = 11
  made.max_response_tokens = 8
  made.eval.prompts = 8
  made.eval.samples = 0
  made.eval.batch_size = 8
  made.checkpoint.every = 2
  made.mesh.data = -1  # all eight
  made.stages = ('warm', 'distil')
  made.warm = config.stage(
    source='dataset',
    terms=dict(demo=dict(objective='negative_log_likelihood')),
    steps=2,
    batch_size=8,
  )
  made.distil = config.stage(
    teachers=dict(teacher='teacher'),
    terms=dict(
      match=dict(objective='matching', divergence='reverse_kl'),
      reward=dict(objective='policy_gradient', surrogate='reinforce', coef=0.1),
    ),
    steps=5,
    batch_size=8,
    group_size=2,
    micro_batches=2,
  )
  for name, value in overrides.items():
    section, _, key = name.rpartition('.')
    (made[section] if section else made)[key] = value
  return made


@pytest.fixture(scope='session')
def make_tiny():
  return lambda **overrides: build.build(
    tiny(**overrides), say=lambda line: None
  )
