"""config.json of Llama and Mistral: as published, and what is refused."""

import pytest

from jopd.models import families
from jopd.models.rope import Llama3

# As published with the weights.
LLAMA_3_2_1B = {
  'architectures': ['LlamaForCausalLM'],
  'attention_bias': False,
  'attention_dropout': 0.0,
  'bos_token_id': 128000,
  'eos_token_id': [128001, 128008, 128009],
  'head_dim': 64,
  'hidden_act': 'silu',
  'hidden_size': 2048,
  'initializer_range': 0.02,
  'intermediate_size': 8192,
  'max_position_embeddings': 131072,
  'mlp_bias': False,
  'model_type': 'llama',
  'num_attention_heads': 32,
  'num_hidden_layers': 16,
  'num_key_value_heads': 8,
  'pretraining_tp': 1,
  'rms_norm_eps': 1e-05,
  'rope_scaling': {
    'factor': 32.0,
    'high_freq_factor': 4.0,
    'low_freq_factor': 1.0,
    'original_max_position_embeddings': 8192,
    'rope_type': 'llama3',
  },
  'rope_theta': 500000.0,
  'tie_word_embeddings': True,
  'torch_dtype': 'bfloat16',
  'transformers_version': '4.45.0.dev0',
  'use_cache': True,
  'vocab_size': 128256,
}
MISTRAL_7B_V01 = {
  'architectures': ['MistralForCausalLM'],
  'bos_token_id': 1,
  'eos_token_id': 2,
  'hidden_act': 'silu',
  'hidden_size': 4096,
  'initializer_range': 0.02,
  'intermediate_size': 14336,
  'max_position_embeddings': 32768,
  'model_type': 'mistral',
  'num_attention_heads': 32,
  'num_hidden_layers': 32,
  'num_key_value_heads': 8,
  'rms_norm_eps': 1e-05,
  'rope_theta': 10000.0,
  'sliding_window': 4096,
  'tie_word_embeddings': False,
  'torch_dtype': 'bfloat16',
  'transformers_version': '4.34.0.dev0',
  'use_cache': True,
  'vocab_size': 32000,
}


def test_published_configs_are_read():
  # Kills: a scaling that is dropped because the base stands beside it.
  config = families.from_hf(LLAMA_3_2_1B)
  assert config.rope_theta == 5e5
  assert config.rope_scaling == Llama3(
    factor=32.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=8192,
  )
  assert not (config.qk_norm or config.qkv_bias or config.sliding)
  config = families.from_hf(MISTRAL_7B_V01)
  assert (config.window, config.sliding) == (4096, (True,) * 32)
  assert (config.head_dim, config.rope_scaling) == (128, None)
  # As of Mistral-7B-v0.2.
  config = families.from_hf(MISTRAL_7B_V01 | {'sliding_window': None})
  assert (config.window, config.sliding) == (None, ())


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'attention_bias': True}, 'attention_bias = True is not implemented'),
    ({'mlp_bias': True}, 'mlp_bias = True is not implemented'),
    ({'hidden_act': 'gelu'}, "hidden_act = 'gelu' .* only 'silu'"),
    (
      {'rope_scaling': LLAMA_3_2_1B['rope_scaling'] | {'rope_type': 'dynamic'}},
      'types implemented are default.*linear, llama3, yarn',
    ),
    (
      {'rope_scaling': {'rope_type': 'linear'}},
      'factor must be a number; got None',
    ),
    (
      {'rope_scaling': {'rope_type': 'linear', 'factor': 2, 'mscale': 1.0}},
      'rope_scaling = .* mscale is not implemented for linear',
    ),
    (
      {
        'rope_scaling': LLAMA_3_2_1B['rope_scaling'] | {'high_freq_factor': 1.0}
      },
      'low_freq_factor = 1.0 must be less than high_freq_factor = 1.0',
    ),
    (
      {'rope_parameters': {'rope_type': 'linear', 'factor': 2.0}},
      'expected one value of scaling of rotary angles; got .*Linear.*Llama3',
    ),
    ({'sliding_window': 4096}, 'unknown field sliding_window'),
  ],
)
def test_what_is_not_implemented_is_refused_by_name(change, message):
  with pytest.raises(ValueError, match=message):
    families.from_hf({**LLAMA_3_2_1B, **change})
