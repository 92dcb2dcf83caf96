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
)


@pytest.fixture(
  scope='session',
  params=['qwen3-tied', 'qwen3-untied', 'qwen2-tied', 'qwen2-untied'],
)
def oracle(request, tmp_path_factory):
  """(folder, torch model) of each family; skipped where torch is absent."""
  pytest.importorskip('torch', reason='the oracle runs on torch')
  family, tied = request.param.split('-')
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # torch's, at import
    model = make_oracle(family, tie_word_embeddings=tied == 'tied')
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
  return folder, model


def make_oracle(family, **fields):
  import torch
  import transformers

  transformers.utils.logging.disable_progress_bar()
  torch.manual_seed(0)
  if family == 'qwen3':
    # Not hidden_size / num_attention_heads = 8.
    config = transformers.Qwen3Config(**SIZES, head_dim=12, **fields)
    model = transformers.Qwen3ForCausalLM(config)
  else:
    config = transformers.Qwen2Config(**SIZES, **fields)
    model = transformers.Qwen2ForCausalLM(config)
  # Norms start at one and biases at zero, where exchanging them is invisible.
  with torch.no_grad():
    for name, param in model.named_parameters():
      if 'norm' in name or 'bias' in name:
        param.add_(0.3 * torch.randn_like(param))
  return model.eval()
