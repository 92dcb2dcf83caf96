"""The model families by `model_type`, and their `config.json`."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from jopd.models import fields as read
from jopd.models import gemma, llama, qwen
from jopd.models.architecture import DecoderConfig
from jopd.models.files import Stored

FAMILIES = {
  'gemma3_text': gemma.GEMMA3,
  'llama': llama.LLAMA,
  'mistral': llama.MISTRAL,
  'qwen2': qwen.QWEN2,
  'qwen3': qwen.QWEN3,
  'qwen3_moe': qwen.QWEN3_MOE,
}
"""By `model_type`."""

_SIZES = {
  'vocab_size': 'vocab_size',
  'num_hidden_layers': 'layers',
  'hidden_size': 'embed',
  'num_attention_heads': 'heads',
}

_LAYERS = 10_000  # at most

_IMPLEMENTED = {
  *_SIZES,
  'num_key_value_heads',
  'head_dim',
  'max_position_embeddings',
  'rms_norm_eps',
  'initializer_range',
  'tie_word_embeddings',
  'model_type',
  'architectures',
}

_FIXED = {
  'attention_dropout': 0,
  'is_encoder_decoder': False,
  'add_cross_attention': False,
}

_IRRELEVANT = {
  # Storage, generation, bookkeeping.
  'dtype',
  'torch_dtype',
  'use_cache',
  'cache_implementation',
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
"""Fields that do not affect the forward pass of a causal language model."""


def stored(config: DecoderConfig, path: str) -> Stored:
  """Returns where the array of a path, like 'layers/mlp/up', is stored."""
  return FAMILIES[config.family].tensors[path]


def from_hf(fields: Mapping[str, Any]) -> DecoderConfig:
  """Returns the architecture that a `config.json` describes.

  Args:
    fields: the decoded file, of transformers 5 or older.

  Raises: ValueError naming the field and its value when it is missing, has a
    value that is not implemented, or is unknown.
  """
  name = fields.get('model_type')
  if name == 'gemma3':
    raise ValueError(
      "model_type = 'gemma3' is multimodal; only text models are supported: "
      "save its language model as 'gemma3_text' with transformers"
    )
  if not isinstance(name, str) or name not in FAMILIES:
    raise ValueError(
      f'model_type = {name!r:.80} is not implemented: use one of '
      f'{", ".join(FAMILIES)}'
    )
  family = FAMILIES[name]
  _check(name, family, fields)
  fields = {**family.defaults, **fields}
  sizes = {
    ours: read.integer(fields, theirs) for theirs, ours in _SIZES.items()
  }
  for theirs, ours in _SIZES.items():
    # Some fields below have one entry per layer, so the number is bounded.
    if not 1 <= sizes[ours] <= (_LAYERS if ours == 'layers' else sizes[ours]):
      raise ValueError(
        f'{theirs} = {sizes[ours]} must be at least 1, and layers at most'
        f' {_LAYERS}'
      )
  return DecoderConfig(
    family=name,
    **sizes,
    mlp=read.integer(fields, family.mlp),
    kv_heads=read.integer(fields, 'num_key_value_heads', sizes['heads']),
    head_dim=read.integer(fields, 'head_dim', sizes['embed'] // sizes['heads']),
    max_positions=read.integer(fields, 'max_position_embeddings', 32_768),
    norm_eps=read.number(fields, 'rms_norm_eps', 1e-6),
    init_scale=read.number(fields, 'initializer_range', 0.02),
    tied=bool(fields.get('tie_word_embeddings', False)),
    **family.read(fields),
  )


def _check(name: str, family: read.Family, fields: Mapping[str, Any]) -> None:
  """Raises ValueError for a field that is unknown or not implemented."""
  if fields.get('architectures') not in (None, [family.architecture]):
    raise ValueError(
      f'architectures = {fields["architectures"]!r}: expected '
      f'{[family.architecture]!r} for model_type = {name!r}'
    )
  fixed = _FIXED | family.fixed
  known = {
    *_IMPLEMENTED,
    *_IRRELEVANT,
    *fixed,
    *family.fields,
    *family.ignored,
    family.mlp,
  }
  for field, value in fields.items():
    if field in fixed and value != fixed[field]:
      raise ValueError(
        f'{field} = {value!r} is not implemented, only {fixed[field]!r}'
      )
    if field not in known:
      raise ValueError(
        f'unknown field {field} = {value!r}: it may change the forward pass '
        'and is not implemented; delete it if it does not'
      )


def to_hf(config: DecoderConfig) -> dict[str, Any]:
  """Returns the fields of a `config.json`; the inverse of `from_hf`.

  Raises: ValueError when files of its family cannot hold the architecture.
  """
  family = FAMILIES[config.family]
  fields = {
    'architectures': [family.architecture],
    'model_type': config.family,
    **{theirs: getattr(config, ours) for theirs, ours in _SIZES.items()},
    family.mlp: config.mlp,
    'num_key_value_heads': config.kv_heads,
    'head_dim': config.head_dim,
    'max_position_embeddings': config.max_positions,
    'rms_norm_eps': config.norm_eps,
    'initializer_range': config.init_scale,
    'tie_word_embeddings': config.tied,
    'attention_dropout': 0.0,
    'use_cache': True,
    **family.write(config),
  }
  values = dataclasses.asdict(config)
  restored = dataclasses.asdict(from_hf(fields))
  lost = {name: x for name, x in values.items() if x != restored[name]}
  if lost:
    raise ValueError(
      f'no Hugging Face folder of family {config.family!r} can store '
      f'{", ".join(f"{name} = {value!r}" for name, value in lost.items())}: '
      'choose another family, or another architecture'
    )
  return fields
