"""config.json of Gemma 3: as published, and what is refused."""

import math

import pytest

from jopd.models import families
from jopd.models.rope import Linear

# As published with the weights.
GEMMA_3_1B = {
  'architectures': ['Gemma3ForCausalLM'],
  'attention_bias': False,
  'attention_dropout': 0.0,
  'attn_logit_softcapping': None,
  'bos_token_id': 2,
  'cache_implementation': 'hybrid',
  'eos_token_id': [1, 106],
  'final_logit_softcapping': None,
  'head_dim': 256,
  'hidden_activation': 'gelu_pytorch_tanh',
  'hidden_size': 1152,
  'initializer_range': 0.02,
  'intermediate_size': 6912,
  'max_position_embeddings': 32768,
  'model_type': 'gemma3_text',
  'num_attention_heads': 4,
  'num_hidden_layers': 26,
  'num_key_value_heads': 1,
  'pad_token_id': 0,
  'query_pre_attn_scalar': 256,
  'rms_norm_eps': 1e-06,
  'rope_local_base_freq': 10000,
  'rope_scaling': None,
  'rope_theta': 1000000,
  'sliding_window': 512,
  'sliding_window_pattern': 6,
  'torch_dtype': 'bfloat16',
  'transformers_version': '4.50.0.dev0',
  'use_cache': True,
  'vocab_size': 262144,
}


def test_the_published_config_is_read():
  # Kills: the two bases exchanged; every sixth layer sliding instead of all
  # the others; an embedding that is not tied because the file does not say.
  config = families.from_hf(GEMMA_3_1B)
  assert (config.rope_theta, config.local_rope_theta) == (1e6, 1e4)
  assert [i for i, slides in enumerate(config.sliding) if not slides] == [
    5,
    11,
    17,
    23,
  ]
  assert (config.window, config.tied) == (512, True)
  assert config.attention_scale == 1 / 16
  assert config.embed_scale == math.sqrt(1152)


def test_only_global_layers_are_scaled():
  # As in the 4B to 27B models, in either spelling.
  scaling = {'rope_type': 'linear', 'factor': 8.0}
  config = families.from_hf(GEMMA_3_1B | {'rope_scaling': scaling})
  assert config.rope_scaling == Linear(factor=8.0)
  old = ('rope_theta', 'rope_scaling', 'rope_local_base_freq')
  new = {k: v for k, v in GEMMA_3_1B.items() if k not in old}
  new['rope_parameters'] = {
    'full_attention': {'rope_theta': 1e6, **scaling},
    'sliding_attention': {'rope_theta': 1e4, 'rope_type': 'default'},
  }
  assert families.from_hf(new) == config
  assert families.from_hf(families.to_hf(config)) == config


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'model_type': 'gemma3'}, 'is multimodal; only text models'),
    ({'final_logit_softcapping': 30.0}, 'final_logit_softcapping = 30.0'),
    ({'attn_logit_softcapping': 50.0}, 'attn_logit_softcapping = 50.0'),
    ({'use_bidirectional_attention': True}, 'use_bidirectional_attention'),
    ({'hidden_activation': 'silu'}, "only 'gelu_pytorch_tanh'"),
    (
      {
        'rope_scaling': {
          'rope_type': 'yarn',
          'factor': 2.0,
          'original_max_position_embeddings': 64,
        }
      },
      'Yarn.* is not implemented for Gemma',
    ),
    (
      {
        'rope_parameters': {
          'sliding_attention': {'rope_type': 'linear', 'factor': 2.0}
        }
      },
      'Linear.* is not implemented in sliding-window layers',
    ),
    (
      {'rope_parameters': {'rope_theta': 1e6, 'rope_type': 'default'}},
      'expected full_attention and sliding_attention',
    ),
    (
      {'rope_parameters': {'sliding_attention': {'rope_theta': 5e3}}},
      'expected one value of rope_theta; got .10000.0, 5000.0.',
    ),
  ],
)
def test_what_is_not_implemented_is_refused_by_name(change, message):
  with pytest.raises(ValueError, match=message):
    families.from_hf({**GEMMA_3_1B, **change})
