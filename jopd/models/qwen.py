"""Qwen2, Qwen2.5 and Qwen3 as Hugging Face writes them.

Two tables: the fields of `config.json`, and the names and layouts of the
tensors. A field that could change the forward pass and is not implemented is
refused by name; being wrong quietly is the one failure nobody can debug.
"""

from collections.abc import Mapping
from typing import Any

from jopd.models.decoder import DecoderConfig
from jopd.models.layout import Stored

_FAMILIES = {
  'qwen2': ('Qwen2ForCausalLM', dict(qkv_bias=True, qk_norm=False)),
  'qwen3': ('Qwen3ForCausalLM', dict(qkv_bias=False, qk_norm=True)),
}

_INTEGERS = {
  'vocab_size': 'vocab_size',
  'num_hidden_layers': 'layers',
  'hidden_size': 'embed',
  'num_attention_heads': 'heads',
  'intermediate_size': 'mlp',
}

_IMPLEMENTED = {
  *_INTEGERS,
  'num_key_value_heads',
  'head_dim',
  'max_position_embeddings',
  'rms_norm_eps',
  'initializer_range',
  'tie_word_embeddings',
  'rope_theta',
  'rope_parameters',
  'rope_scaling',
  'layer_types',
  'model_type',
  'architectures',
}

_FIXED = {
  'hidden_act': 'silu',
  'attention_dropout': 0,
  'attention_bias': False,
  'use_sliding_window': False,
  'use_mrope': False,
  'is_encoder_decoder': False,
  'add_cross_attention': False,
}
"""Fields that change the result, with the one value that is implemented."""

_IRRELEVANT = {
  # Read only where use_sliding_window is true.
  'sliding_window',
  'max_window_layers',
  # Storage, generation, bookkeeping.
  'dtype',
  'torch_dtype',
  'use_cache',
  'bos_token_id',
  'eos_token_id',
  'pad_token_id',
  'transformers_version',
  '_name_or_path',
  '_attn_implementation_autoset',
  'return_dict',
  'output_attentions',
  'output_hidden_states',
  'chunk_size_feed_forward',
  'problem_type',
  'id2label',
  'label2id',
}
"""Fields that never reach the forward pass of a causal language model."""


def _linear(name: str, out: tuple[str, ...], into: tuple[str, ...]) -> Stored:
  """A weight of torch's Linear: [out, in]."""
  return Stored(f'model.layers.{{layer}}.{name}.weight', (out, into))


def _vector(name: str, *axes: str | None) -> Stored:
  return Stored(f'model.layers.{{layer}}.{name}', (axes,))


_TENSORS = {
  'embed': Stored('model.embed_tokens.weight', (('vocab',), ('embed',))),
  'head': Stored('lm_head.weight', (('vocab',), ('embed',))),
  'norm/scale': Stored('model.norm.weight', ((None,),)),
  'layers/attention_norm/scale': _vector('input_layernorm.weight', None),
  'layers/mlp_norm/scale': _vector('post_attention_layernorm.weight', None),
  'layers/attention/q': _linear(
    'self_attn.q_proj', ('heads', 'head_dim'), ('embed',)
  ),
  'layers/attention/k': _linear(
    'self_attn.k_proj', ('kv_heads', 'head_dim'), ('embed',)
  ),
  'layers/attention/v': _linear(
    'self_attn.v_proj', ('kv_heads', 'head_dim'), ('embed',)
  ),
  'layers/attention/o': _linear(
    'self_attn.o_proj', ('embed',), ('heads', 'head_dim')
  ),
  'layers/attention/q_bias': _vector(
    'self_attn.q_proj.bias', 'heads', 'head_dim'
  ),
  'layers/attention/k_bias': _vector(
    'self_attn.k_proj.bias', 'kv_heads', 'head_dim'
  ),
  'layers/attention/v_bias': _vector(
    'self_attn.v_proj.bias', 'kv_heads', 'head_dim'
  ),
  'layers/attention/q_norm/scale': _vector('self_attn.q_norm.weight', None),
  'layers/attention/k_norm/scale': _vector('self_attn.k_norm.weight', None),
  'layers/mlp/gate': _linear('mlp.gate_proj', ('mlp',), ('embed',)),
  'layers/mlp/up': _linear('mlp.up_proj', ('mlp',), ('embed',)),
  'layers/mlp/down': _linear('mlp.down_proj', ('embed',), ('mlp',)),
}


def stored(path: str) -> Stored:
  """Returns where the array of a path, like 'layers/mlp/up', is stored."""
  return _TENSORS[path]


def from_hf(fields: Mapping[str, Any]) -> DecoderConfig:
  """Returns the architecture that a `config.json` describes.

  Args:
    fields: the decoded file. Both spellings of the rotary base are read:
      `rope_parameters` of transformers 5, and `rope_theta` of older files.

  Raises: ValueError naming the field and its value when it is missing, has a
    value that is not implemented, or is unknown.
  """
  family = fields.get('model_type')
  if family not in _FAMILIES:
    raise ValueError(
      f'model_type = {family!r} is not implemented: use one of '
      f'{", ".join(_FAMILIES)}'
    )
  architecture, variant = _FAMILIES[family]
  if fields.get('architectures') not in (None, [architecture]):
    raise ValueError(
      f'architectures = {fields["architectures"]!r}: expected '
      f'{[architecture]!r} for model_type = {family!r}'
    )
  for name, value in fields.items():
    if name in _FIXED and value != _FIXED[name]:
      raise ValueError(
        f'{name} = {value!r} is not implemented, only {_FIXED[name]!r}'
      )
    if name not in _IMPLEMENTED | _IRRELEVANT | _FIXED.keys():
      raise ValueError(
        f'unknown field {name} = {value!r}: it may change the forward pass, '
        'and jopd does not implement it; delete it if you know it does not'
      )
  sizes = {ours: _integer(fields, name) for name, ours in _INTEGERS.items()}
  if set(fields.get('layer_types') or ()) - {'full_attention'}:
    raise ValueError(
      f'layer_types = {fields["layer_types"]!r}: only full_attention is '
      'implemented'
    )
  # Defaults are those of transformers: older files leave such fields out.
  head_dim = 128 if family == 'qwen3' else sizes['embed'] // sizes['heads']
  return DecoderConfig(
    **sizes,
    **variant,
    kv_heads=_integer(fields, 'num_key_value_heads', sizes['heads']),
    head_dim=_integer(fields, 'head_dim', head_dim),
    max_positions=_integer(fields, 'max_position_embeddings', 32_768),
    rope_theta=_rope_theta(fields),
    norm_eps=_number(fields, 'rms_norm_eps', 1e-6),
    init_scale=_number(fields, 'initializer_range', 0.02),
    tied=bool(fields.get('tie_word_embeddings', False)),
  )


def _integer(
  fields: Mapping[str, Any], name: str, default: int | None = None
) -> int:
  value = fields.get(name)
  value = default if value is None else value
  if not isinstance(value, int) or isinstance(value, bool):
    raise ValueError(f'{name} must be an integer; got {value!r}')
  return value


def _number(
  fields: Mapping[str, Any], name: str, default: float | None = None
) -> float:
  value = fields.get(name, default)
  if not isinstance(value, int | float) or isinstance(value, bool):
    raise ValueError(f'{name} must be a number; got {value!r}')
  return float(value)


def _rope_theta(fields: Mapping[str, Any]) -> float:
  """The one base that every spelling in the file agrees on."""
  bases = [_number(fields, 'rope_theta')] if 'rope_theta' in fields else []
  for name in ('rope_parameters', 'rope_scaling'):
    rope = dict(fields.get(name) or {})
    if 'rope_theta' in rope:
      bases.append(_number(rope, 'rope_theta'))
      del rope['rope_theta']
    kinds = {rope.pop('rope_type', 'default'), rope.pop('type', 'default')}
    if kinds != {'default'} or rope:
      raise ValueError(
        f'{name} = {fields[name]!r}: only the default rotary embedding is '
        'implemented, without scaling'
      )
  if len(set(bases)) > 1:
    raise ValueError(
      f'expected one rope_theta; got {bases}: keep the right one'
    )
  return bases[0] if bases else 10_000.0


def to_hf(config: DecoderConfig) -> dict[str, Any]:
  """Returns the fields of a `config.json`; the inverse of `from_hf`.

  The rotary base is written in both spellings, so that transformers 4 and 5
  and the inference engines that follow either read the same model.

  Raises: ValueError when the architecture is neither Qwen2 nor Qwen3.
  """
  variant = dict(qkv_bias=config.qkv_bias, qk_norm=config.qk_norm)
  names = [name for name, row in _FAMILIES.items() if row[1] == variant]
  if not names:
    raise ValueError(
      f'no Hugging Face family has {variant}: expected either qkv_bias (Qwen2)'
      ' or qk_norm (Qwen3), not both and not neither'
    )
  return {
    'architectures': [_FAMILIES[names[0]][0]],
    'model_type': names[0],
    **{name: getattr(config, ours) for name, ours in _INTEGERS.items()},
    'num_key_value_heads': config.kv_heads,
    'head_dim': config.head_dim,
    'max_position_embeddings': config.max_positions,
    'rms_norm_eps': config.norm_eps,
    'initializer_range': config.init_scale,
    'tie_word_embeddings': config.tied,
    'rope_theta': config.rope_theta,
    'rope_parameters': {
      'rope_theta': config.rope_theta,
      'rope_type': 'default',
    },
    'hidden_act': 'silu',
    'attention_dropout': 0.0,
    'use_sliding_window': False,
    'use_cache': True,
  }
