"""A config of real models as a plan needs it: sizes in place of weights."""

import json
import pathlib

from ml_collections import ConfigDict

from jopd.models import hub
from jopd.run.config import error_context
from jopd.run.response_sources import make_rows, members

_SUMS = dict(name='running_sum', modulus=10, length=6)


def _qwen3(width, mlp, layers, heads, tied=True) -> dict:
  return dict(
    model_type='qwen3',
    vocab_size=151_936,
    hidden_size=width,
    intermediate_size=mlp,
    num_hidden_layers=layers,
    num_attention_heads=heads,
    num_key_value_heads=8,
    head_dim=128,
    rope_theta=1_000_000,
    max_position_embeddings=40_960,
    tie_word_embeddings=tied,
  )


# What each config.json says, where there is neither folder nor network.
SIZES = {
  'Qwen/Qwen3-0.6B': _qwen3(1024, 3072, 28, 16),
  'Qwen/Qwen3-1.7B': _qwen3(2048, 6144, 28, 16),
  'Qwen/Qwen3-4B': _qwen3(2560, 9728, 36, 32),
  'Qwen/Qwen3-8B': _qwen3(4096, 12288, 36, 32, tied=False),
  'Qwen/Qwen3-14B': _qwen3(5120, 17408, 40, 40, tied=False),
  'Qwen/Qwen3-32B': _qwen3(5120, 25600, 64, 64, tied=False),
}


def sketch(config: ConfigDict) -> ConfigDict:
  """The config with sizes for models, and a builtin task for data.

  Shapes, stages, losses and lengths stay; nothing else reaches a compiler. A
  config whose models are sizes already stays as it is.

  Args:
    config: of a run; not changed.

  Raises: FileNotFoundError when a model has no config.json.
  """
  config = config.copy_and_resolve_references()
  paths = {n: spec for n, spec in config.models.items() if 'path' in spec}
  if not paths:
    return config
  for name, spec in paths.items():
    with error_context(f'config.models.{name}'):
      config.models[name] = ConfigDict(_fields(**spec.to_dict()))
  most = max(config[name].batch_size for name in config.stages)
  config.data = ConfigDict(_SUMS | dict(count=2 * most))
  config.eval_data = ConfigDict(_SUMS | dict(count=16, split='test'))
  config.eval.prompts, config.eval_tasks = 16, ConfigDict()
  config.reward = ConfigDict(dict(name='exact_match'))
  config.tokenizer, config.chat_template_kwargs = '', ConfigDict()
  config.context, config.stop_strings = ConfigDict(dict(name='same')), ()
  for name in config.stages:
    stage = config[name]
    stage.data, stage.mask_tokens = _domains(config, stage), ()
    for role in stage.teacher_contexts:
      stage.teacher_contexts[role] = 'same'
  return config


def _domains(config: ConfigDict, stage: ConfigDict) -> ConfigDict:
  """Data with the domains that terms of a stage name; empty where none do."""
  domains = make_rows(members(stage), stage.loss.to_dict()).domains
  parts = dict.fromkeys(domains, config.data.to_dict())
  return ConfigDict(dict(name='blend', parts=parts) if parts else {})


def _fields(path: str, revision: str | None = None) -> dict:
  """The config.json of a folder, or of a name of the hub."""
  file = pathlib.Path(path) / 'config.json'
  if not file.is_file() and path in SIZES:
    return SIZES[path]
  if not file.is_file():
    file = pathlib.Path(hub.find(path, revision)) / 'config.json'
  return json.loads(file.read_text())
