"""config.json of Qwen: as published, windows and long contexts among it."""

import math

import jax
import pytest

from jopd.models import families, make_model
from jopd.models.rope import Yarn

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
QWEN3_30B_A3B = {
  'architectures': ['Qwen3MoeForCausalLM'],
  'attention_bias': False,
  'attention_dropout': 0.0,
  'bos_token_id': 151643,
  'decoder_sparse_step': 1,
  'eos_token_id': 151645,
  'head_dim': 128,
  'hidden_act': 'silu',
  'hidden_size': 2048,
  'initializer_range': 0.02,
  'intermediate_size': 6144,
  'max_position_embeddings': 40960,
  'max_window_layers': 48,
  'mlp_only_layers': [],
  'model_type': 'qwen3_moe',
  'moe_intermediate_size': 768,
  'norm_topk_prob': True,
  'num_attention_heads': 32,
  'num_experts': 128,
  'num_experts_per_tok': 8,
  'num_hidden_layers': 48,
  'num_key_value_heads': 4,
  'output_router_logits': False,
  'rms_norm_eps': 1e-06,
  'rope_scaling': None,
  'rope_theta': 1000000.0,
  'router_aux_loss_coef': 0.001,
  'sliding_window': None,
  'tie_word_embeddings': False,
  'torch_dtype': 'bfloat16',
  'transformers_version': '4.51.0',
  'use_cache': True,
  'use_sliding_window': False,
  'vocab_size': 151936,
}


def test_published_configs_are_read():
  # Kills: a sliding window taken at its word while it is switched off; D / H
  # as the head size of Qwen3 (64 here).
  config = families.from_hf(QWEN3_0_6B)
  assert (config.head_dim, config.qk_norm, config.qkv_bias) == (
    128,
    True,
    False,
  )
  assert config.rope_theta == 1e6
  config = families.from_hf(QWEN2_5_0_5B)
  assert (config.head_dim, config.qk_norm, config.qkv_bias) == (64, False, True)
  assert config.tied and config.window is None


def test_windows_are_used_when_switched_on():
  # Kills: the first layers sliding instead of the last ones.
  fields = QWEN2_5_0_5B | {'use_sliding_window': True, 'sliding_window': 100}
  config = families.from_hf(fields)
  assert config.window == 100
  assert config.sliding == (False,) * 21 + (True,) * 3
  kinds = ['sliding_attention', 'full_attention'] * 12
  config = families.from_hf(fields | {'layer_types': kinds})
  assert config.sliding == (True, False) * 12
  assert families.from_hf(families.to_hf(config)) == config
  # More layers than there are: none slides, as in Qwen2-57B's file.
  config = families.from_hf(fields | {'max_window_layers': 70})
  assert config.window is None


def test_the_long_context_of_qwen3_is_read():
  # As its model card says to write it.
  yarn = {
    'rope_type': 'yarn',
    'factor': 4.0,
    'original_max_position_embeddings': 32768,
  }
  config = families.from_hf(QWEN3_0_6B | {'rope_scaling': yarn})
  assert config.rope_scaling == Yarn(
    factor=4.0, original_max_position_embeddings=32768
  )
  # 0.1 ln 4 + 1, from the paper.
  assert abs(config.rope_scaling.amplitude - 1.138629) < 1e-6
  assert families.from_hf(families.to_hf(config)) == config


def test_a_model_with_experts_has_the_published_size():
  # Kills: the width of dense layers, which it has not, for that of experts.
  config = families.from_hf(QWEN3_30B_A3B)
  assert (config.experts, config.experts_per_token, config.mlp) == (128, 8, 768)
  shapes = jax.eval_shape(make_model(config).init, jax.random.key(0))
  count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
  assert count == 30_532_122_624  # "30.5B"


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'mlp_only_layers': [0]}, r'mlp_only_layers = \[0\] is not implemented'),
    ({'decoder_sparse_step': 2}, 'decoder_sparse_step = 2 is not implemented'),
    ({'use_sliding_window': True}, 'use_sliding_window = True is not'),
    (
      {'num_local_experts': 64},
      'one value of number of experts; got .128, 64.',
    ),
    ({'num_experts_per_tok': 0}, 'experts_per_token = 0 must be in'),
    ({'shared_expert_intermediate_size': 8}, 'unknown field shared_expert'),
  ],
)
def test_other_ways_to_have_experts_are_refused_by_name(change, message):
  with pytest.raises(ValueError, match=message):
    families.from_hf({**QWEN3_30B_A3B, **change})


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (
      {'layer_types': ['full_attention'] * 27 + ['sliding_attention']},
      'layer_types = .* no sliding_window is in use',
    ),
    ({'layer_types': ['full_attention'] * 3}, 'for each of the 28 layers'),
    ({'layer_types': ['chunked_attention'] * 28}, 'expected full_attention or'),
    (
      {'use_sliding_window': True, 'sliding_window': 'far'},
      "sliding_window must be an integer; got 'far'",
    ),
    ({'use_mrope': True}, 'use_mrope = True is not implemented'),
  ],
)
def test_what_is_not_implemented_is_refused_by_name(change, message):
  with pytest.raises(ValueError, match=message):
    families.from_hf({**QWEN3_0_6B, **change})
