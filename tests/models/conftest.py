"""Tiny random checkpoints, written by transformers on torch: the oracle."""

import warnings

import pytest

SIZES = dict(
  vocab_size=96,
  hidden_size=32,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  intermediate_size=48,
  rope_parameters={'rope_theta': 50_000.0, 'rope_type': 'default'},
  initializer_range=0.3,
  eos_token_id=None,  # or generation stops there
)
# Contexts of the pretraining far shorter than the 600 tokens of the tests, so
# that every branch of a scaling has pairs in it.
LLAMA3 = dict(
  rope_type='llama3',
  rope_theta=5_000.0,
  factor=8.0,
  low_freq_factor=1.0,
  high_freq_factor=4.0,
  original_max_position_embeddings=64,
)
LINEAR = dict(rope_type='linear', rope_theta=5_000.0, factor=3.0)
YARN = dict(
  rope_type='yarn',
  rope_theta=5_000.0,
  factor=4.0,
  original_max_position_embeddings=128,
)
# By name: the class of transformers before 'Config' and 'ForCausalLM', and
# fields of its config. Head sizes of 12 are not hidden_size / heads = 8.
ORACLES = {
  'qwen2-tied': ('Qwen2', dict(tie_word_embeddings=True)),
  'qwen2-untied': ('Qwen2', dict(tie_word_embeddings=False)),
  'qwen2-window': (
    'Qwen2',
    dict(use_sliding_window=True, sliding_window=50, max_window_layers=1),
  ),
  'qwen3-tied': ('Qwen3', dict(head_dim=12, tie_word_embeddings=True)),
  'qwen3-untied': ('Qwen3', dict(head_dim=12, tie_word_embeddings=False)),
  'qwen3-yarn': ('Qwen3', dict(head_dim=12, rope_parameters=YARN)),
  'llama': ('Llama', dict(rope_parameters=LLAMA3)),
  'llama-linear': (
    'Llama',
    dict(head_dim=12, rope_parameters=LINEAR, tie_word_embeddings=True),
  ),
  'mistral': ('Mistral', dict(head_dim=12, sliding_window=50)),
  # Three layers that slide and one that does not; embeddings and scores that
  # are scaled by numbers of their own.
  'gemma': (
    'Gemma3',
    dict(
      num_hidden_layers=4,
      head_dim=12,
      sliding_window=50,
      layer_types=[*['sliding_attention'] * 3, 'full_attention'],
      query_pre_attn_scalar=20,
      rope_parameters={
        'full_attention': LINEAR,
        'sliding_attention': {'rope_type': 'default', 'rope_theta': 700.0},
      },
    ),
  ),
  'qwen3-moe': (
    'Qwen3Moe',
    dict(
      head_dim=12,
      moe_intermediate_size=20,
      num_experts=6,
      num_experts_per_tok=2,
      norm_topk_prob=True,
    ),
  ),
  'qwen3-moe-plain': (
    'Qwen3Moe',
    dict(moe_intermediate_size=20, num_experts=5, num_experts_per_tok=3),
  ),
  'mistral-full': ('Mistral', dict(sliding_window=None)),
}


@pytest.fixture(scope='session', params=ORACLES)
def oracle(request, tmp_path_factory):
  """(folder, torch model) of each family; skipped where torch is absent."""
  pytest.importorskip('torch', reason='the oracle runs on torch')
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # torch's, at import
    model = make_oracle(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
  return folder, model


def make_oracle(name):
  import torch
  import transformers

  transformers.utils.logging.disable_progress_bar()
  torch.manual_seed(0)
  family, fields = ORACLES[name]
  kind = 'Gemma3TextConfig' if family == 'Gemma3' else f'{family}Config'
  config = getattr(transformers, kind)(**{**SIZES, **fields})
  model = getattr(transformers, f'{family}ForCausalLM')(config)
  # Norms start at one and biases at zero, where exchanging them is invisible.
  with torch.no_grad():
    for name, param in model.named_parameters():
      if 'norm' in name or 'bias' in name:
        param.add_(0.3 * torch.randn_like(param))
  return model.eval()
