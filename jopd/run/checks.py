"""What is wrong with the settings and the data of a run, said before it runs.

Each check raises a ValueError of one line, or does nothing.
"""

from collections.abc import Callable, Iterable, Mapping
import inspect
import math

import jax
from ml_collections import ConfigDict

from jopd.data.contexts import reads_rollouts
from jopd.data.examples import Example
from jopd.data.prompts import check_boundary
from jopd.models.api import Model
from jopd.models.decoder import REMAT
from jopd.models.lora import Lora
from jopd.rewards import Response, Reward
from jopd.rollout.sampling import sampling
from jopd.run.config import (
  about,
  base,
  check_arguments,
  check_kind,
  did_you_mean,
  refuse_unknown,
)
from jopd.run.config import stage as default_stage
from jopd.run.response_sources import Rows, members

_DTYPES = ('float32', 'bfloat16', 'float16')


def check(config) -> None:
  """Refuses wrong settings of a config, except those of its stages."""
  _check_kinds(config, base(), 'config')
  # A section that could be a stage may stand unused beside those that are.
  known = {*base(), *config.stages, *_stages_of(config)}
  refuse_unknown(config, known, 'a config')
  for name in ('mesh', 'eval', 'checkpoint'):
    refuse_unknown(config[name], base()[name], f'config.{name}')
    _check_kinds(config[name], base()[name], f'config.{name}')
  for name, model in config.models.items():
    if not isinstance(model, ConfigDict):
      raise ValueError(f'config.models.{name} must be a section: {model!r:.60}')
  _check_least(0, config, ['seed'])
  sizes = ('max_prompt_tokens', 'max_response_tokens', 'num_length_buckets')
  _check_least(1, config, sizes)
  with about('config.eval'):
    _check_least(1, config.eval, ('prompts', 'batch_size'))
    _check_least(0, config.eval, ['samples'])
    sampling(1, temperature=config.eval.temperature, top_p=config.eval.top_p)
  with about('config.checkpoint'):
    _check_least(1, config.checkpoint, ('every', 'keep'))
  if not 0 <= config.max_bad_row_fraction <= 1:
    raise ValueError(
      f'max_bad_row_fraction is a share, from 0 to 1; got {config.max_bad_row_fraction}'
    )
  _check_choice('compute_dtype', config.compute_dtype, _DTYPES)
  _check_choice('remat', config.remat, REMAT)


def check_stages(config) -> None:
  """Refuses wrong settings of the stages that a config names."""
  if not config.stages:
    raise ValueError("a config needs stages, such as ('distil',)")
  for name in config.stages:
    if name not in config:
      raise ValueError(
        f'config.stages names {name!r}{did_you_mean(name, _stages_of(config))}'
      )
    with about(f'config.{name}'):
      _check_stage(config[name], config.models)


def _stages_of(config) -> list[str]:
  """The names of all sections that `jopd.run.config.stage` could have made."""
  settings = set(default_stage())
  return [
    name
    for name, section in config.items()
    if isinstance(section, ConfigDict) and set(section) == settings
  ]


# Sections that may be a name alone.
_SPECS = (
  'data',
  'eval_data',
  'context',
  'reward',
  'loss_aggregation',
  'filter',
)


def _check_kinds(section, defaults, where: str) -> None:
  """Refuses a setting that is missing, or of another kind than its default."""
  if not isinstance(section, ConfigDict):
    raise ValueError(f'{where} must be a section, got {section!r:.60}')
  for name, default in defaults.items():
    if name not in section:
      raise ValueError(
        f'{where} has lost its {name!r}; change single keys, such as'
        f' {where}.{name} = {default!r}, to keep the other defaults'
      )
    value = section[name]
    if name in ('response_source', 'weight_extrapolation'):
      continue  # of several kinds; whoever reads them says what is wrong
    if isinstance(default, ConfigDict) or name in (
      'loss_aggregation',
      'filter',
    ):
      if not isinstance(value, (ConfigDict, str)[: 1 + (name in _SPECS)]):
        raise ValueError(f'{where}.{name} must be a section: {value!r:.60}')
    elif isinstance(default, tuple):
      texts = isinstance(value, tuple | list) and all(
        isinstance(one, str | Mapping) for one in value
      )
      if not texts:
        raise ValueError(f'{where}.{name} must be texts: {value!r:.60}')
    else:
      check_kind(f'{where}.{name}', value, type(default))
      if isinstance(value, float) and not abs(value) < 1e30:
        raise ValueError(f'{where}.{name} is out of range, got {value}')


def _check_least(least: int, section, names: Iterable[str]) -> None:
  for name in names:
    if section[name] < least:
      raise ValueError(f'{name} must be at least {least}, got {section[name]}')


def _check_choice(name: str, value: str, known: Iterable[str]) -> None:
  if value not in known:
    raise ValueError(f'{name} is {value!r}{did_you_mean(value, known)}')


def _check_stage(stage, models) -> None:
  refuse_unknown(stage, default_stage(), 'a stage')
  _check_kinds(stage, default_stage(), 'it')
  counts = (
    'steps',
    'batch_size',
    'group_size',
    'num_minibatches',
    'gradient_accumulation_steps',
  )
  _check_least(
    1, stage, (*counts, 'loss_chunk_tokens', 'max_consecutive_skips')
  )
  least = ('max_num_seqs', 'warmup_steps', 'max_grad_norm', 'eval_every')
  _check_least(0, stage, (*least, 'held_out', 'held_out_every'))
  if stage.held_out_every and not stage.held_out:
    raise ValueError(
      f'held_out_every = {stage.held_out_every} needs prompts to measure: say'
      ' in held_out how many'
    )
  if stage.grad_norm_spike and not stage.grad_norm_spike > 1:
    raise ValueError(
      f'spike must be 0, for no bound, or above 1, got {stage.grad_norm_spike}'
    )
  if not stage.loss_temperature > 0:
    raise ValueError(
      f'temperature must be above 0, got {stage.loss_temperature}'
    )
  start = (stage.init_from,) if stage.init_from else ()
  for name in (stage.student, *start, *stage.teachers.values()):
    if not isinstance(name, str) or name not in models:
      raise ValueError(
        f'there is no model {name!r} in config.models'
        f'{did_you_mean(name, models)}'
      )
  groups = members(stage)
  rollout_dtypes = ('', *_DTYPES, 'int8')
  _check_choice('rollout_dtype', stage.rollout_dtype, rollout_dtypes)
  _check_choice('teacher_dtype', stage.teacher_dtype, rollout_dtypes)
  _check_choice('teacher_memory', stage.teacher_memory, ('', 'host'))
  _check_lora(stage)
  refuse_unknown(stage.teacher_contexts, stage.teachers, 'teacher_contexts')
  refuse_unknown(stage.teacher_sync, stage.teachers, 'teacher_sync')
  refuse_unknown(stage.teacher_mixing, stage.teachers, 'teacher_mixing')
  if stage.teacher_contexts:
    _check_least(1, stage, ['max_teacher_prompt_tokens'])
  own = stage.batch_size // jax.process_count()
  if own % stage.num_minibatches:
    raise ValueError(
      f'{own} prompts (batch_size / processes) do not divide into'
      f' {stage.num_minibatches} updates'
    )
  rows = stage.batch_size * len(next(iter(groups))) // stage.num_minibatches
  if rows % stage.gradient_accumulation_steps:
    raise ValueError(
      f'{rows} rows (batch_size x group_size / updates) do not divide into'
      f' {stage.gradient_accumulation_steps} micro_batches'
    )
  if not stage.loss:
    raise ValueError('terms is empty: there is no loss')
  refuse_unknown(stage.rollout, default_stage().rollout, 'rollout')


def _check_lora(stage) -> None:
  if not stage.lora:
    return
  with about('lora'):
    check_arguments(stage.lora, inspect.signature(Lora).parameters, 'it')
    _check_choice('base', stage.lora.get('base', ''), ('', *_DTYPES, 'int8'))
    if stage.teacher_sync:
      raise ValueError(
        'teachers that move follow all parameters, and only adapters are'
        ' trained: empty one of lora and moving'
      )


def check_positions(
  model: Model, prompt: tuple[str, int], response_tokens: int
) -> None:
  """Refuses texts longer than a model's weights are good for.

  The forward would go on without a word, with angles it was never trained on.

  Args:
    model: whose config has `max_positions`.
    prompt: the setting that limits its prompts, and its value.
    response_tokens: most tokens of a response.
  """
  (name, tokens), positions = prompt, model.config.max_positions
  if tokens + response_tokens > positions:
    raise ValueError(
      f'{name} = {tokens} and max_response_tokens = {response_tokens} make'
      f' {tokens + response_tokens} tokens, more than its'
      f' max_position_embeddings = {positions}: lower one of them'
    )


def check_answer(
  example: Example,
  reward: Callable[[Response, Example], Reward],
  *,
  required: bool,
) -> None:
  """Refuses a reference that nothing could match, and one that is missing.

  Args:
    example: to be graded.
    reward: of a response to it.
    required: whether it needs a reward.
  """
  value = reward(Response('', prompt=example.messages), example).value
  if required and math.isnan(value):
    raise ValueError(
      'no answer to grade by; add it, or name its field: answer_field'
    )


def check_marks(reward, tokenizer) -> None:
  """Refuses a mark that a reward looks for and that no decoded text holds.

  Special tokens are left out of the text of a response; where a tokenizer has
  '</think>' among them, a reward that waits for it would be 0 for ever.

  Args:
    reward: `config.reward`, whose texts are such marks.
    tokenizer: which decodes responses.
  """
  marks = {} if isinstance(reward, str) else dict(reward)
  marks.pop('name', None)
  for name, mark in marks.items():
    if isinstance(mark, str) and mark:
      ids = tokenizer.encode(mark, add_special_tokens=False)
      if mark.strip() not in tokenizer.decode(ids, skip_special_tokens=True):
        raise ValueError(
          f'{name}: {mark!r} is a special token of the tokenizer, which the'
          ' text of a response does not hold; look for another mark'
        )


def note_boundary(
  example: Example, say: Callable[[str], None], **encoding
) -> None:
  """Says so where imitation sees other tokens than the chat template renders.

  Not an error: templates that add an empty thinking block do it on purpose.

  Args:
    example: with a response.
    say: takes a line of text.
    encoding: of `data.batching`: tokenizer, stop_id, template_kwargs, context.
  """
  messages = encoding.pop('context')(example)
  try:
    check_boundary(messages=messages, response=example.response, **encoding)
  except ValueError as error:
    say(f'note: example {example.id}: {error}')


def check_response(example: Example) -> None:
  """Refuses to imitate an example that has no response."""
  if example.response is None:
    raise ValueError(
      'the stage learns responses, but the row has none; add them, or choose'
      ' another source'
    )


def check_domains(examples: Iterable[Example], rows: Rows) -> None:
  """Refuses a name in `on` of a term that is of nothing there.

  Args:
    examples: of the stage.
    rows: whose domains are all names that are no source.
  """
  if not rows.domains:
    return
  there = {example.domain for example in examples} - {''}
  for name in rows.domains:
    if name not in there:
      known = (*rows.sources, *there)
      raise ValueError(
        f"a term's on names {name!r}, which is no source of the stage's"
        f' responses and no domain of its data{did_you_mean(name, known)}'
      )


def check_own_context(context: Callable) -> None:
  """Refuses what a student cannot read, since it has not answered yet."""
  if reads_rollouts(context):
    raise ValueError(
      'it tells of the responses, and this is read before they are written: it'
      ' is for the contexts of a teacher'
    )
