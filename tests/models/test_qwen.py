"""config.json of the two families: read, refused, written."""

import dataclasses

import pytest

from jopd.models import qwen

# As published with the weights; transformers 4 wrote both.
QWEN3_0_6B = {
  'architectures': ['Qwen3ForCausalLM'],
  'attention_bias': False,
  'attention_dropout': 0.0,
  'bos_token_id': 151643,
  'eos_token_id': 151645,
  'head_dim': 128,
  'hidden_act': 'silu',
  'hidden_size': 1024,
  'initializer_range': 0.02,
  'intermediate_size': 3072,
  'max_position_embeddings': 40960,
  'max_window_layers': 28,
  'model_type': 'qwen3',
  'num_attention_heads': 16,
  'num_hidden_layers': 28,
  'num_key_value_heads': 8,
  'rms_norm_eps': 1e-06,
  'rope_scaling': None,
  'rope_theta': 1000000,
  'sliding_window': None,
  'tie_word_embeddings': True,
  'torch_dtype': 'bfloat16',
  'transformers_version': '4.51.0',
  'use_cache': True,
  'use_sliding_window': False,
  'vocab_size': 151936,
}
QWEN2_5_0_5B = {
  'architectures': ['Qwen2ForCausalLM'],
  'attention_dropout': 0.0,
  'bos_token_id': 151643,
  'eos_token_id': 151645,
  'hidden_act': 'silu',
  'hidden_size': 896,
  'initializer_range': 0.02,
  'intermediate_size': 4864,
  'max_position_embeddings': 32768,
  'max_window_layers': 21,
  'model_type': 'qwen2',
  'num_attention_heads': 14,
  'num_hidden_layers': 24,
  'num_key_value_heads': 2,
  'rms_norm_eps': 1e-06,
  'rope_theta': 1000000.0,
  'sliding_window': 32768,
  'tie_word_embeddings': True,
  'torch_dtype': 'bfloat16',
  'transformers_version': '4.43.1',
  'use_cache': True,
  'use_sliding_window': False,
  'vocab_size': 151936,
}


def test_published_configs_are_read():
  # Kills: a sliding window taken at its word while it is switched off; D / H
  # as the head size of Qwen3 (64 here).
  config = qwen.from_hf(QWEN3_0_6B)
  assert (config.head_dim, config.qk_norm, config.qkv_bias) == (
    128,
    True,
    False,
  )
  assert config.rope_theta == 1e6
  config = qwen.from_hf(QWEN2_5_0_5B)
  assert (config.head_dim, config.qk_norm, config.qkv_bias) == (64, False, True)
  assert config.tied


@pytest.mark.parametrize('fields', [QWEN3_0_6B, QWEN2_5_0_5B])
def test_writing_and_reading_a_config_gives_it_back(fields):
  # Kills: a field that is read but not written.
  config = qwen.from_hf(fields)
  assert qwen.from_hf(qwen.to_hf(config)) == config


def test_absent_fields_mean_what_transformers_means():
  # Kills: the head size of Qwen3 from D / H; an untied Qwen3 read as tied.
  transformers = pytest.importorskip('transformers')
  for name, sized in (('qwen2', QWEN2_5_0_5B), ('qwen3', QWEN3_0_6B)):
    keep = {*qwen._INTEGERS, 'num_key_value_heads', 'model_type'}
    fields = {k: v for k, v in sized.items() if k in keep}
    theirs = transformers.AutoConfig.for_model(
      name, **{k: v for k, v in fields.items() if k != 'model_type'}
    )
    ours = qwen.from_hf(fields)
    assert ours == qwen.from_hf(theirs.to_dict() | {'architectures': None})


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (
      {'model_type': 'llama'},
      "model_type = 'llama' is not implemented: .*qwen2",
    ),
    (
      {'architectures': ['Qwen3ForSequenceClassification']},
      'architectures = .*expected .*Qwen3ForCausalLM',
    ),
    ({'hidden_act': 'gelu'}, "hidden_act = 'gelu' .* only 'silu'"),
    ({'attention_bias': True}, 'attention_bias = True is not implemented'),
    ({'attention_dropout': 0.1}, 'attention_dropout = 0.1'),
    ({'use_sliding_window': True}, 'use_sliding_window = True'),
    (
      {'layer_types': ['full_attention'] * 27 + ['sliding_attention']},
      'only full_attention',
    ),
    ({'logit_scale': 0.5}, 'unknown field logit_scale = 0.5'),
    ({'quantization_config': {'bits': 4}}, 'unknown field quantization_config'),
    ({'auto_map': {'AutoModel': 'm.M'}}, 'unknown field auto_map'),
    (
      {'rope_scaling': {'rope_type': 'yarn', 'factor': 4.0}},
      "rope_scaling = .*'yarn'.* only the default rotary",
    ),
    (
      {'rope_scaling': {'type': 'linear', 'factor': 2.0}},
      'only the default rotary',
    ),
    (
      {'rope_parameters': {'rope_theta': 5e5, 'rope_type': 'default'}},
      'expected one rope_theta; got .1000000.0, 500000.0.',
    ),
    (
      {'rope_parameters': {'rope_theta': 1e6, 'partial_rotary_factor': 0.5}},
      'rope_parameters = .*partial_rotary_factor',
    ),
    ({'rms_norm_eps': None}, 'rms_norm_eps must be a number; got None'),
    ({'hidden_size': None}, 'hidden_size must be an integer; got None'),
    ({'vocab_size': '151936'}, "vocab_size must be an integer; got '151936'"),
  ],
)
def test_a_field_that_is_not_implemented_is_refused_by_name(change, message):
  with pytest.raises(ValueError, match=message):
    qwen.from_hf({**QWEN3_0_6B, **change})


def test_a_config_of_no_family_cannot_be_written():
  config = dataclasses.replace(qwen.from_hf(QWEN3_0_6B), qkv_bias=True)
  with pytest.raises(ValueError, match='no Hugging Face family'):
    qwen.to_hf(config)
