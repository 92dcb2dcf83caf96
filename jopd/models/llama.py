"""Llama 3 and Mistral in Hugging Face's format, and tensors of all families."""

from typing import Any

from jopd.models import fields as read
from jopd.models.architecture import DecoderConfig
from jopd.models.files import Stored


def linear(name: str, out: tuple[str, ...], into: tuple[str, ...]) -> Stored:
  """The weight of a torch Linear, [out, in], of a layer."""
  return Stored(f'model.layers.{{layer}}.{name}.weight', (out, into))


def vector(name: str, *axes: str | None) -> Stored:
  """A bias or a norm of a layer."""
  return Stored(f'model.layers.{{layer}}.{name}', (axes,))


TENSORS = {
  'embed': Stored('model.embed_tokens.weight', (('vocab',), ('embed',))),
  'head': Stored('lm_head.weight', (('vocab',), ('embed',))),
  'norm/scale': Stored('model.norm.weight', ((None,),)),
  'layers/attention_norm/scale': vector('input_layernorm.weight', None),
  'layers/mlp_norm/scale': vector('post_attention_layernorm.weight', None),
  'layers/attention/q': linear(
    'self_attn.q_proj', ('heads', 'head_dim'), ('embed',)
  ),
  'layers/attention/k': linear(
    'self_attn.k_proj', ('kv_heads', 'head_dim'), ('embed',)
  ),
  'layers/attention/v': linear(
    'self_attn.v_proj', ('kv_heads', 'head_dim'), ('embed',)
  ),
  'layers/attention/o': linear(
    'self_attn.o_proj', ('embed',), ('heads', 'head_dim')
  ),
  'layers/mlp/gate': linear('mlp.gate_proj', ('mlp',), ('embed',)),
  'layers/mlp/up': linear('mlp.up_proj', ('mlp',), ('embed',)),
  'layers/mlp/down': linear('mlp.down_proj', ('embed',), ('mlp',)),
}
"""By the path of an array; the tensors that all families share."""


LLAMA = read.Family(
  architecture='LlamaForCausalLM',
  tensors=TENSORS,
  read=read.read_rope,
  write=lambda config: {
    **read.write_rope(config),
    'hidden_act': 'silu',
    'attention_bias': False,
    'mlp_bias': False,
  },
  fields=read.ROPE,
  fixed={'hidden_act': 'silu', 'attention_bias': False, 'mlp_bias': False},
  # It only splits products, which affects rounding.
  ignored=('pretraining_tp',),
  defaults={'max_position_embeddings': 2048},
)


def _read_mistral(fields: read.Fields) -> dict[str, Any]:
  # Null means no windows; the default of transformers is 4096.
  window = fields.get('sliding_window', 4096)
  if window is not None:
    window = read.integer(fields, 'sliding_window', 4096)
  return {
    **read.read_rope(fields),
    **read.read_windows(fields, window, lambda layer: True),
  }


def _write_mistral(config: DecoderConfig) -> dict[str, Any]:
  return {
    **read.write_rope(config),
    'hidden_act': 'silu',
    'sliding_window': config.window,
  }


MISTRAL = read.Family(
  architecture='MistralForCausalLM',
  tensors=TENSORS,
  read=_read_mistral,
  write=_write_mistral,
  fields=(*read.ROPE, 'sliding_window'),
  fixed={'hidden_act': 'silu'},
  defaults={'num_key_value_heads': 8, 'max_position_embeddings': 131_072},
)
