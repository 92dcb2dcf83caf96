"""A run so small that starting it is all that it costs: a config, a folder."""

import jax

from jopd.data.tokenizer import builtin_tokenizer
from jopd.models import hf
from jopd.run import config as configs

SIZE = dict(
  model_type='qwen3',
  hidden_size=16,
  intermediate_size=32,
  num_hidden_layers=1,
  num_attention_heads=2,
  num_key_value_heads=1,
  head_dim=8,
  initializer_range=0.1,
  tie_word_embeddings=True,
)


def get_config():
  config = configs.base()
  config.models.teacher = SIZE
  config.models.student = SIZE
  config.data = dict(name='running_sum', count=64)
  config.eval_data = dict(name='running_sum', count=16, split='test')
  config.max_prompt_tokens = 16
  config.max_response_tokens = 16
  config.eval.prompts = 8
  config.eval.samples = 0
  config.eval.batch_size = 8
  config.stages = ('warm', 'distil')
  config.warm = configs.stage(
    response_source='dataset',
    steps=1,
    batch_size=8,
    loss=dict(demo=dict(objective='negative_log_likelihood')),
  )
  config.distil = configs.stage(
    teachers=dict(teacher='teacher'),
    steps=1,
    batch_size=8,
    loss=dict(match=dict(objective='divergence', divergence='reverse_kl')),
  )
  return config


def save_model(folder, *, tokenizer=None, seed=0, **options):
  """A folder with a random model of SIZE; returns it as text."""
  tokenizer = tokenizer or builtin_tokenizer()
  model = hf.fresh({'vocab_size': len(tokenizer), **SIZE})
  params = model.init(jax.random.key(seed))
  hf.save(folder, model, params, tokenizer=tokenizer, **options)
  return str(folder)
