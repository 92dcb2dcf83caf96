"""What can be wrong with settings by themselves, before anything is made."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
import inspect

import jax
from ml_collections import ConfigDict
import numpy as np

from jopd.data.examples import Example
from jopd.models.decoder import REMAT
from jopd.models.lora import Lora
from jopd.rewards import Response
from jopd.rollout.sampling import make_sampling_params
from jopd.run import config as defaults
from jopd.run.config import (
  SPECS,
  ConfigError,
  check_arguments,
  check_kind,
  did_you_mean,
  error_context,
  refuse_unknown,
)
from jopd.run.resolve import is_own
from jopd.run.sources import make_sources

_DTYPES = ('float32', 'bfloat16', 'float16')


def check(config) -> None:
  """Refuses wrong settings of a config, except those of its stages."""
  if not isinstance(config.stages, tuple | list):
    raise ConfigError(f'config.stages must be a tuple: {config.stages!r:.60}')
  # A section that could be a stage may stand unused beside those that are.
  known = {*defaults.base(), *config.stages, *_stages_of(config)}
  refuse_unknown(config, known, 'the config')
  _check_kinds(config, defaults.base(), 'config')
  for name in ('mesh', 'eval', 'checkpoint'):
    default = defaults.base()[name]
    if isinstance(config[name], ConfigDict):
      refuse_unknown(config[name], default, f'config.{name}')
    _check_kinds(config[name], default, f'config.{name}', specs=())
  for name, model in config.models.items():
    if not isinstance(model, ConfigDict) and not callable(model):
      raise ConfigError(
        f'config.models.{name} must be a section or a function: {model!r:.60}'
      )
  _check_least(config, 0, 'seed')
  sizes = 'max_prompt_tokens', 'max_response_tokens', 'num_length_buckets'
  _check_least(config, 1, *sizes)
  with error_context('config.eval'):
    _check_least(config.eval, 1, 'prompts', 'batch_size')
    _check_least(config.eval, 0, 'samples')
    make_sampling_params(
      1, temperature=config.eval.temperature, top_p=config.eval.top_p
    )
  with error_context('config.checkpoint'):
    _check_least(config.checkpoint, 1, 'every', 'keep')
  if not 0 <= config.max_bad_row_fraction <= 1:
    raise ConfigError(
      'max_bad_row_fraction must be from 0 to 1, got'
      f' {config.max_bad_row_fraction}'
    )
  _check_choice('compute_dtype', config.compute_dtype, _DTYPES)
  _check_choice('remat', config.remat, REMAT)


def check_stages(config) -> None:
  """Refuses wrong settings of the stages that a config names."""
  if not config.stages:
    raise ConfigError(
      "config.stages is empty: name stages, such as ('distil',)"
    )
  for name in config.stages:
    if name not in config:
      near = did_you_mean(name, _stages_of(config))
      raise ConfigError(f'config.stages names {name!r}, which is missing{near}')
    with error_context(f'config.{name}'):
      _check_stage(config[name], config.models)


def _stages_of(config) -> list[str]:
  """The names of all sections that `config.stage` could have made."""
  settings = set(defaults.stage())
  return [
    name
    for name, section in config.items()
    if isinstance(section, ConfigDict) and set(section) == settings
  ]


def _check_kinds(section, default_section, where: str, specs=SPECS) -> None:
  """Refuses a setting that is missing, or of another kind than its default."""
  if not isinstance(section, ConfigDict):
    raise ConfigError(f'{where} must be a section, got {section!r:.60}')
  for name, default in default_section.items():
    if name not in section:
      raise ConfigError(
        f'{where}.{name} is missing: assign to single keys, such as'
        f' {where}.{name} = {default!r}, instead of replacing the section'
      )
    value = section[name]
    if name in specs:
      continue  # of several kinds; checked when it is resolved
    if isinstance(default, ConfigDict):
      if not isinstance(value, ConfigDict):
        raise ConfigError(f'{where}.{name} must be a section: {value!r:.60}')
    elif isinstance(default, tuple):
      kinds = str | Mapping | Callable
      if not isinstance(value, tuple | list) or not all(
        isinstance(one, kinds) for one in value
      ):
        raise ConfigError(f'{where}.{name} must be a tuple: {value!r:.60}')
    else:
      check_kind(f'{where}.{name}', value, type(default))
      if isinstance(value, float) and not abs(value) < 1e30:
        raise ConfigError(f'{where}.{name} is out of range, got {value}')


def _check_least(section, least: int, *names: str) -> None:
  for name in names:
    if section[name] < least:
      raise ConfigError(f'{name} must be at least {least}, got {section[name]}')


def _check_choice(name: str, value: str, known: Iterable[str]) -> None:
  if value not in known:
    raise ConfigError(f'{name} is {value!r}{did_you_mean(value, known)}')


def _check_stage(stage, models) -> None:
  default = defaults.stage()
  if not isinstance(stage, ConfigDict):
    raise ConfigError(f'a stage must be a section, got {stage!r:.60}')
  refuse_unknown(stage, default, 'a stage')
  _check_kinds(stage, default, 'the stage')
  parts = 'num_minibatches', 'gradient_accumulation_steps'
  _check_least(stage, 1, 'steps', 'batch_size', 'group_size', *parts)
  _check_least(stage, 1, 'loss_chunk_tokens', 'max_consecutive_skips')
  _check_least(stage, 0, 'max_num_seqs', 'warmup_steps', 'max_grad_norm')
  _check_least(stage, 0, 'eval_every', 'held_out')
  if stage.grad_norm_spike and not stage.grad_norm_spike > 1:
    raise ConfigError(
      'grad_norm_spike must be 0, for no bound, or above 1, got'
      f' {stage.grad_norm_spike}'
    )
  if not stage.loss_temperature > 0:
    raise ConfigError(
      f'loss_temperature must be above 0, got {stage.loss_temperature}'
    )
  init_from = (stage.init_from,) if stage.init_from else ()
  for name in (stage.student, *init_from, *stage.teachers.values()):
    if not isinstance(name, str) or name not in models:
      raise ConfigError(
        f'config.models has no model {name!r}{did_you_mean(name, models)}'
      )
  for name in ('rollout_dtype', 'teacher_dtype'):
    _check_choice(name, stage[name], ('', *_DTYPES, 'int8'))
  _check_choice('teacher_memory', stage.teacher_memory, ('', 'host'))
  _check_lora(stage)
  if not stage.loss:
    raise ConfigError('loss is empty: add a term')
  for name in ('teacher_contexts', 'teacher_sync', 'teacher_mixing'):
    refuse_unknown(stage[name], stage.teachers, name)
  refuse_unknown(stage.rollout, default.rollout, 'rollout')
  if stage.teacher_contexts:
    _check_least(stage, 1, 'max_teacher_prompt_tokens')
  prompts = stage.batch_size // jax.process_count()
  if prompts % stage.num_minibatches:
    raise ConfigError(
      f'{prompts} prompts (batch_size / processes) do not divide into'
      f' num_minibatches = {stage.num_minibatches}'
    )
  group_size = make_sources(stage).group_size
  rows = stage.batch_size * group_size // stage.num_minibatches
  if rows % stage.gradient_accumulation_steps:
    raise ConfigError(
      f'{rows} rows (batch_size x group_size / num_minibatches) do not divide'
      f' into gradient_accumulation_steps = {stage.gradient_accumulation_steps}'
    )


def _check_lora(stage) -> None:
  if not stage.lora:
    return
  with error_context('lora'):
    check_arguments(stage.lora, inspect.signature(Lora).parameters, 'lora')
    _check_choice('base', stage.lora.get('base', ''), ('', *_DTYPES, 'int8'))
    if stage.teacher_sync:
      raise ConfigError(
        'lora cannot be combined with teacher_sync, which follows all'
        ' parameters: leave one of them empty'
      )


def check_positions(model, name: str, tokens: int, new_tokens: int) -> None:
  """Refuses texts longer than the positions that a model was trained on."""
  positions = model.config.max_positions
  if tokens + new_tokens > positions:
    raise ConfigError(
      f'{name} = {tokens} and max_response_tokens = {new_tokens} make'
      f' {tokens + new_tokens} tokens, more than its max_position_embeddings ='
      f' {positions}: lower one of them'
    )


def check_answer(example: Example, reward: Callable, *, required: bool) -> None:
  """Refuses an answer that a reward cannot read, and one that is missing.

  A reward of a user's own is not tried: it may be slow, and need no answer.

  Args:
    example: of the data.
    reward: `rewards.grade` of a reward function.
    required: whether the stage needs rewards.
  """
  function = reward.args[0] if isinstance(reward, partial) else reward
  if is_own(function):
    return
  graded = reward(Response('', prompt=example.messages), example)
  if required and np.isnan(graded.value):
    raise ConfigError(
      'no answer to grade by; add it, or name its column in answer_field'
    )


def check_marks(spec, tokenizer) -> None:
  """Refuses a mark that a reward looks for and that no decoded text contains.

  Special tokens are left out of the text of a response; where a tokenizer has
  '</think>' among them, a reward that waits for it would always be 0.

  Args:
    spec: `config.reward`, whose texts are such marks.
    tokenizer: decodes the responses.
  """
  for name, mark in spec.items() if hasattr(spec, 'items') else ():
    if name == 'name' or not isinstance(mark, str) or not mark:
      continue
    ids = tokenizer.encode(mark, add_special_tokens=False)
    if mark.strip() not in tokenizer.decode(ids, skip_special_tokens=True):
      raise ConfigError(
        f'{name}: {mark!r} is a special token of the tokenizer, which is left'
        ' out of the text of a response: choose another mark'
      )
