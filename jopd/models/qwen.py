"""Qwen2, Qwen2.5 and Qwen3, dense or with experts, in Hugging Face's format."""

from typing import Any

from jopd.models import fields as read
from jopd.models.architecture import DecoderConfig
from jopd.models.files import Stored
from jopd.models.llama import TENSORS, linear, vector

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


def _expert(name: str, out: str, into: str) -> Stored:
  """A weight of one expert, [out, in]."""
  return linear(f'mlp.experts.{{expert}}.{name}', (out,), (into,))


def _read_moe(fields: read.Fields) -> dict[str, Any]:
  # transformers 5 has the second name.
  names = 'num_experts', 'num_local_experts'
  counts = [read.integer(fields, name) for name in names if name in fields]
  return {
    **read.read_rope(fields),
    'qk_norm': True,
    'experts': read.agreed('number of experts', counts, 128),
    'experts_per_token': read.integer(fields, 'num_experts_per_tok', 8),
    'experts_normed': bool(fields.get('norm_topk_prob', False)),
    'router_aux_loss': read.number(fields, 'router_aux_loss_coef', 0.001),
  }


def _write_moe(config: DecoderConfig) -> dict[str, Any]:
  return {
    **read.write_rope(config),
    'hidden_act': 'silu',
    'num_experts': config.experts,
    'num_experts_per_tok': config.experts_per_token,
    'norm_topk_prob': config.experts_normed,
    'router_aux_loss_coef': config.router_aux_loss,
    # Of layers without experts; there are none.
    'intermediate_size': config.mlp,
    'decoder_sparse_step': 1,
    'mlp_only_layers': [],
    'use_sliding_window': False,
  }


QWEN3_MOE = read.Family(
  architecture='Qwen3MoeForCausalLM',
  tensors={
    **QWEN3.tensors,
    'layers/mlp/router': linear('mlp.gate', ('experts',), ('embed',)),
    'layers/mlp/gate': _expert('gate_proj', 'mlp', 'embed'),
    'layers/mlp/up': _expert('up_proj', 'mlp', 'embed'),
    'layers/mlp/down': _expert('down_proj', 'embed', 'mlp'),
  },
  read=_read_moe,
  write=_write_moe,
  fields=(
    *read.ROPE,
    'num_experts',
    'num_local_experts',
    'num_experts_per_tok',
    'norm_topk_prob',
    'router_aux_loss_coef',
  ),
  fixed={
    **_FIXED,
    'decoder_sparse_step': 1,
    'mlp_only_layers': [],
    'use_sliding_window': False,
  },
  ignored=(
    'intermediate_size',
    'sliding_window',
    'max_window_layers',
    'output_router_logits',
  ),
  mlp='moe_intermediate_size',
)
