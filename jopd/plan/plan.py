"""From a config to what each of its stages will need on some devices."""

import json
import pathlib
from typing import NamedTuple

from ml_collections import ConfigDict

from jopd.models import hub
from jopd.plan import chips
from jopd.plan.phases import measure
from jopd.plan.program import Phase, TooLarge
from jopd.run import build
from jopd.run.config import error_context
from jopd.run.sources import make_sources


class StagePlan(NamedTuple):
  """What a stage needs.

  Attributes:
    name: of the stage.
    responses: per step.
    tokens: most tokens of each.
    phases: in order, up to the first that does not fit.
    refused: name of that phase, and the message of the compiler.
  """

  name: str
  responses: int
  tokens: int
  phases: list[Phase]
  refused: tuple[str, str] | None


class RunPlan(NamedTuple):
  """What a run needs.

  Attributes:
    chip: of every device; None if unknown.
    devices: their number.
    mesh: axis -> size.
    stages: in order.
  """

  chip: chips.Chip | None
  devices: int
  mesh: dict[str, int]
  stages: list[StagePlan]


def plan(config, topology: str = '') -> RunPlan:
  """Compiles every phase of a config from shapes, for devices of any kind.

  Args:
    config: as `build` takes it. Of models with a path only `config.json` is
      read.
    topology: see `chips.find`.

  Raises:
    ValueError, FileNotFoundError: a setting or the topology is wrong.
  """
  devices, chip = chips.find(topology)
  built = build.build_abstract(without_weights(config), devices)
  # Of the models, whose tokenizer may not be here.
  vocab_size = min(model.vocab_size for model in built.run.models.values())
  run = built.run._replace(vocab_size=vocab_size)
  stages = []
  for stage in built.stages:
    settings = config[stage.name]
    widths = {
      role: settings.max_teacher_prompt_tokens
      if role in settings.teacher_contexts
      else config.max_prompt_tokens
      for role in stage.teachers.models
    } | {'': config.max_prompt_tokens}
    phases, refused = [], None
    try:
      for phase in measure(
        stage,
        run,
        built.params,
        prompts=settings.batch_size,
        widths=widths,
      ):
        phases.append(phase)
    except TooLarge as error:
      refused = error.args
    responses = settings.batch_size * stage.rollouts.group_size
    stages.append(
      StagePlan(
        stage.name, responses, config.max_response_tokens, phases, refused
      )
    )
  return RunPlan(chip, len(devices), dict(built.run.mesh.shape), stages)


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


# The config.json of these models, for use without a folder or a network.
SIZES = {
  'Qwen/Qwen3-0.6B': _qwen3(1024, 3072, 28, 16),
  'Qwen/Qwen3-1.7B': _qwen3(2048, 6144, 28, 16),
  'Qwen/Qwen3-4B': _qwen3(2560, 9728, 36, 32),
  'Qwen/Qwen3-8B': _qwen3(4096, 12288, 36, 32, tied=False),
  'Qwen/Qwen3-14B': _qwen3(5120, 17408, 40, 40, tied=False),
  'Qwen/Qwen3-32B': _qwen3(5120, 25600, 64, 64, tied=False),
}


def without_weights(config: ConfigDict) -> ConfigDict:
  """The config with sizes in place of model folders, and a builtin task.

  Shapes, stages, losses and lengths stay; the compiler reads nothing else. A
  config without model folders stays as it is.

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
      config.models[name] = ConfigDict(_model_config(**spec.to_dict()))
  batch_size = max(config[name].batch_size for name in config.stages)
  config.data = ConfigDict(_SUMS | dict(count=2 * batch_size))
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
  """Data with the domains that terms of a stage name; empty without any."""
  domains = make_sources(stage).domains
  parts = dict.fromkeys(domains, config.data.to_dict())
  return ConfigDict(dict(name='blend', parts=parts) if parts else {})


def _model_config(path: str, revision: str | None = None) -> dict:
  """The config.json of a folder, or of a name on the hub."""
  file = pathlib.Path(path) / 'config.json'
  if not file.is_file() and path in SIZES:
    return SIZES[path]
  if not file.is_file():
    file = pathlib.Path(hub.find(path, revision)) / 'config.json'
  return json.loads(file.read_text())
