"""config.json of every family: read, refused, written."""

import dataclasses

import pytest
from test_gemma import GEMMA_3_1B
from test_llama import LLAMA_3_2_1B, MISTRAL_7B_V01
from test_qwen import QWEN2_5_0_5B, QWEN3_0_6B, QWEN3_30B_A3B

from jopd.models import families

PUBLISHED = {
  fields['model_type']: fields
  for fields in (
    GEMMA_3_1B,
    LLAMA_3_2_1B,
    MISTRAL_7B_V01,
    QWEN2_5_0_5B,
    QWEN3_0_6B,
    QWEN3_30B_A3B,
  )
}


def test_every_family_has_a_published_config():
  assert PUBLISHED.keys() == families.FAMILIES.keys()


@pytest.mark.parametrize('name', families.FAMILIES)
def test_writing_and_reading_a_config_gives_it_back(name):
  # Kills: a field that is read but not written.
  config = families.from_hf(PUBLISHED[name])
  assert config.family == name
  assert families.from_hf(families.to_hf(config)) == config


@pytest.mark.parametrize('name', families.FAMILIES)
def test_absent_fields_mean_what_transformers_means(name):
  # Kills: the head size of Qwen3 from D / H; an untied Qwen3 read as tied.
  transformers = pytest.importorskip('transformers')
  keep = {
    'vocab_size',
    'num_hidden_layers',
    'hidden_size',
    'num_attention_heads',
    'model_type',
    families.FAMILIES[name].mlp,
  }
  if families.FAMILIES[name].defaults.get('num_key_value_heads') is None:
    # Others take the number of heads of some model for it, whatever ours.
    keep |= {'num_key_value_heads'}
  fields = {k: v for k, v in PUBLISHED[name].items() if k in keep}
  theirs = transformers.AutoConfig.for_model(**fields)
  ours = families.from_hf(fields)
  assert ours == families.from_hf(theirs.to_dict() | {'architectures': None})


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'model_type': 'gpt2'}, "model_type = 'gpt2' is not implemented: .*qwen2"),
    (
      {'architectures': ['Qwen3ForSequenceClassification']},
      'architectures = .*expected .*Qwen3ForCausalLM',
    ),
    ({'hidden_act': 'gelu'}, "hidden_act = 'gelu' .* only 'silu'"),
    ({'attention_bias': True}, 'attention_bias = True is not implemented'),
    ({'attention_dropout': 0.1}, 'attention_dropout = 0.1'),
    ({'logit_scale': 0.5}, 'unknown field logit_scale = 0.5'),
    ({'quantization_config': {'bits': 4}}, 'unknown field quantization_config'),
    ({'auto_map': {'AutoModel': 'm.M'}}, 'unknown field auto_map'),
    (
      {'rope_parameters': {'rope_theta': 5e5, 'rope_type': 'default'}},
      'expected one value of rope_theta; got .1000000.0, 500000.0.',
    ),
    (
      {'rope_parameters': {'rope_theta': 1e6, 'partial_rotary_factor': 0.5}},
      'rope_parameters = .*partial_rotary_factor',
    ),
    (
      {'rope_scaling': {'rope_type': 'yarn', 'factor': 4.0}},
      'original_max_position_embeddings must be an integer; got None',
    ),
    ({'rms_norm_eps': None}, 'rms_norm_eps must be a number; got None'),
    ({'hidden_size': None}, 'hidden_size must be an integer; got None'),
    ({'vocab_size': '151936'}, "vocab_size must be an integer; got '151936'"),
  ],
)
def test_a_field_that_is_not_implemented_is_refused_by_name(change, message):
  with pytest.raises(ValueError, match=message):
    families.from_hf({**QWEN3_0_6B, **change})


@pytest.mark.parametrize(
  'change',
  [
    dict(qkv_bias=True),
    dict(qk_norm=False),
    dict(family='llama'),
    dict(family='llama', qk_norm=False, window=4, sliding=(True,) * 28),
  ],
)
def test_what_a_family_cannot_say_is_not_written(change):
  # Kills: a folder that another model is read from than was saved.
  config = dataclasses.replace(families.from_hf(QWEN3_0_6B), **change)
  with pytest.raises(ValueError, match='no Hugging Face folder of family'):
    families.to_hf(config)
