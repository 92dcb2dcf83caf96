"""Gemma 3 in Hugging Face's format: the language model without vision."""

from typing import Any

from jopd.models import fields as read
from jopd.models.architecture import DecoderConfig
from jopd.models.llama import TENSORS, vector
from jopd.models.rope import Linear

_GLOBAL_THETA, _LOCAL_THETA = 1_000_000.0, 10_000.0
_FULL, _SLIDING = 'full_attention', 'sliding_attention'


def _read(fields: read.Fields) -> dict[str, Any]:
  every = read.integer(
    fields,
    'sliding_window_pattern',
    read.integer(fields, '_sliding_window_pattern', 6),
  )
  return {
    **_read_rope(fields),
    **read.read_windows(
      fields,
      read.integer(fields, 'sliding_window', 4096),
      lambda layer: (layer + 1) % every != 0,
    ),
    'attention_scale': read.integer(fields, 'query_pre_attn_scalar', 256)
    ** -0.5,
    'embed_scale': read.integer(fields, 'hidden_size') ** 0.5,
    'qk_norm': True,
    'post_norms': True,
    'centered_norms': True,
    'activation': 'gelu_tanh',
  }


def _read_rope(fields: read.Fields) -> dict[str, Any]:
  """The bases of global and sliding-window layers; only global are scaled."""
  both = read.table(fields, 'rope_parameters')
  unknown = both.keys() - {_FULL, _SLIDING}
  if unknown:
    raise ValueError(
      f'rope_parameters = {both!r:.80}: expected {_FULL} and {_SLIDING}'
    )
  spelled = {
    name: fields[name]
    for name in ('rope_theta', 'rope_scaling')
    if name in fields
  }
  rope = read.read_rope(
    {**spelled, 'rope_parameters': both.get(_FULL)}, _GLOBAL_THETA
  )
  if not isinstance(rope['rope_scaling'], Linear | None):
    raise ValueError(
      f'{rope["rope_scaling"]} is not implemented for Gemma: use rope_type '
      'linear, or default'
    )
  local = {'rope_parameters': both.get(_SLIDING)}
  if 'rope_local_base_freq' in fields:
    local['rope_theta'] = fields['rope_local_base_freq']
  local = read.read_rope(local, _LOCAL_THETA)
  if local['rope_scaling'] is not None:
    raise ValueError(
      f'{local["rope_scaling"]} is not implemented in sliding-window layers: '
      'use rope_type default there'
    )
  return {**rope, 'local_rope_theta': local['rope_theta']}


def _write(config: DecoderConfig) -> dict[str, Any]:
  rope = read.write_rope(config)
  scale = config.attention_scale or config.head_dim**-0.5
  return {
    'rope_theta': rope['rope_theta'],
    'rope_scaling': rope['rope_scaling'],
    'rope_local_base_freq': config.local_rope_theta,
    'rope_parameters': {
      _FULL: rope['rope_parameters'],
      _SLIDING: {
        'rope_theta': config.local_rope_theta,
        'rope_type': 'default',
      },
    },
    'sliding_window': config.window,
    'layer_types': read.layer_types(config),
    'query_pre_attn_scalar': round(scale**-2),
    'hidden_activation': 'gelu_pytorch_tanh',
    'attention_bias': False,
    'attn_logit_softcapping': None,
    'final_logit_softcapping': None,
  }


GEMMA3 = read.Family(
  architecture='Gemma3ForCausalLM',
  tensors={
    **TENSORS,
    'layers/attention/q_norm/scale': vector('self_attn.q_norm.weight', None),
    'layers/attention/k_norm/scale': vector('self_attn.k_norm.weight', None),
    'layers/attention_post_norm/scale': vector(
      'post_attention_layernorm.weight', None
    ),
    'layers/mlp_norm/scale': vector('pre_feedforward_layernorm.weight', None),
    'layers/mlp_post_norm/scale': vector(
      'post_feedforward_layernorm.weight', None
    ),
  },
  read=_read,
  write=_write,
  fields=(
    *read.ROPE,
    'rope_local_base_freq',
    'sliding_window',
    'sliding_window_pattern',
    '_sliding_window_pattern',
    'layer_types',
    'query_pre_attn_scalar',
  ),
  fixed={
    'hidden_activation': 'gelu_pytorch_tanh',
    'attention_bias': False,
    # Gemma 3 has no soft-caps.
    'attn_logit_softcapping': None,
    'final_logit_softcapping': None,
    'use_bidirectional_attention': False,
  },
  defaults={
    'num_key_value_heads': 4,
    'head_dim': 256,
    'max_position_embeddings': 131_072,
    'tie_word_embeddings': True,
  },
)
