"""Qwen2, Qwen2.5 and Qwen3 as Hugging Face writes them."""

from typing import Any

from jopd.models import fields as read
from jopd.models.architecture import DecoderConfig
from jopd.models.llama import TENSORS, vector

_FIXED = {'hidden_act': 'silu', 'attention_bias': False, 'use_mrope': False}

_FIELDS = (
  *read.ROPE,
  'use_sliding_window',
  'sliding_window',
  'max_window_layers',
  'layer_types',
)


def _read(fields: read.Fields) -> dict[str, Any]:
  window = None
  if fields.get('use_sliding_window'):
    window = read.integer(fields, 'sliding_window', 4096)
  first = read.integer(fields, 'max_window_layers', 28)
  return {
    **read.read_rope(fields),
    **read.read_windows(fields, window, lambda layer: layer >= first),
  }


def _write(config: DecoderConfig) -> dict[str, Any]:
  fields = {
    **read.write_rope(config),
    'hidden_act': 'silu',
    'use_sliding_window': config.window is not None,
  }
  if config.window is not None:
    fields |= {
      'sliding_window': config.window,
      'max_window_layers': config.sliding.index(True),
      'layer_types': read.layer_types(config),
    }
  return fields


QWEN2 = read.Family(
  architecture='Qwen2ForCausalLM',
  tensors={
    **TENSORS,
    'layers/attention/q_bias': vector(
      'self_attn.q_proj.bias', 'heads', 'head_dim'
    ),
    'layers/attention/k_bias': vector(
      'self_attn.k_proj.bias', 'kv_heads', 'head_dim'
    ),
    'layers/attention/v_bias': vector(
      'self_attn.v_proj.bias', 'kv_heads', 'head_dim'
    ),
  },
  read=lambda fields: {**_read(fields), 'qkv_bias': True},
  write=_write,
  fields=_FIELDS,
  fixed=_FIXED,
)

QWEN3 = read.Family(
  architecture='Qwen3ForCausalLM',
  tensors={
    **TENSORS,
    'layers/attention/q_norm/scale': vector('self_attn.q_norm.weight', None),
    'layers/attention/k_norm/scale': vector('self_attn.k_norm.weight', None),
  },
  read=lambda fields: {**_read(fields), 'qk_norm': True},
  write=_write,
  fields=_FIELDS,
  fixed=_FIXED,
  defaults={'head_dim': 128},
)
