"""From the section of a stage to its components, one function for each."""

from collections.abc import Callable, Mapping
from functools import partial
import inspect
import logging
import math
from numbers import Real

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jopd import sharding
from jopd.data import batching
from jopd.data import rows as data_rows
from jopd.data.contexts import reads_rollouts
from jopd.data.examples import Example, ScoredResponse, Unfit
from jopd.data.filtering import RejectedRows, RowFilter
from jopd.data.prompts import check_boundary, encode_prompt
from jopd.losses import reads_of
from jopd.models.lora import Lora, adapter_axes
from jopd.rollout.engine import check_max_num_seqs
from jopd.rollout.sampling import make_sampling_params
from jopd.run.checks import check_answer, check_positions
from jopd.run.config import (
  ConfigError,
  check_arguments,
  did_you_mean,
  error_context,
)
from jopd.run.loss import make_loss, needs_reward, read_terms
from jopd.run.resolve import (
  Scalar,
  find,
  plain,
  public_functions,
  read_number,
  read_spec,
  resolve,
)
from jopd.run.sources import DATASET, STUDENT, Sources, make_sources
from jopd.train import random_streams
from jopd.train.callbacks import Callback, Setup
from jopd.train.callbacks.base import controlled_scalars, make_callbacks
from jopd.train.stage import (
  Loss,
  Prompts,
  Rollouts,
  Run,
  Stage,
  Student,
  Teachers,
  Update,
)

_log = logging.getLogger(__name__)
# (learning rate, steps) -> the schedule after warm-up.
_LR_SCHEDULES = {
  'constant': lambda rate, steps: optax.constant_schedule(rate),
  'linear': lambda rate, steps: optax.linear_schedule(rate, 0.0, steps),
  'cosine': optax.cosine_decay_schedule,
}


def make_stage(
  config, index: int, run: Run, encoding: dict, rejected: RejectedRows
) -> Stage:
  """A stage from its settings, its data read; no weights yet.

  Args:
    config: of the run.
    index: of the stage, among config.stages.
    run: what all stages share.
    encoding: of `data.batching`: tokenizer, stop_id, template_kwargs, context.
    rejected: takes the rows that the stage cannot use.

  Raises:
    ConfigError: a setting or the data is wrong.
  """
  settings = config[config.stages[index]]
  sources = make_sources(settings)
  _check_sizes(settings, run, sources)
  if settings.context:
    with error_context('context'):
      encoding = encoding | dict(context=student_context(settings.context))
  student = make_student(settings, run)
  teachers = make_teachers(config, settings, run, sources, encoding)
  callbacks = read_callbacks(settings)
  made = _try_callbacks(callbacks, settings, run, index, sources)
  controlled = controlled_scalars(made)
  rollouts = make_rollouts(config, settings, run, sources, controlled)
  # Before the data are read: a misspelt loss should not wait for that.
  loss = make_loss(
    settings,
    vocab_size=run.vocab_size,
    sources=sources,
    controlled=controlled,
    off_policy=_off_policy(settings, sources, rollouts, made, controlled),
    chunk_parts=sharding.batch_parts(run.mesh),
  )
  update = make_update(settings, loss, sources)
  prompts = make_prompts(
    config, index, run, encoding, rejected, sources, rollouts.filter
  )
  return Stage(
    name=config.stages[index],
    index=index,
    steps=settings.steps,
    eval_every=settings.eval_every,
    student=student,
    teachers=teachers,
    prompts=prompts,
    rollouts=rollouts,
    loss=loss,
    update=update,
    callbacks=callbacks,
    fingerprint=_fingerprint(config, settings, made),
    later=_models_of(config, config.stages[index + 1 :]),
  )


def make_student(settings, run: Run) -> Student:
  """The model that learns, and its adapters."""
  if settings.init_from:
    with error_context('init_from'):
      _check_same_shapes(run, settings.init_from, settings.student)
  lora = None
  if settings.lora:
    with error_context('lora'):
      values = settings.lora.to_dict()
      lora = Lora(**values | {'targets': tuple(values.get('targets', ()))})
      adapter_axes(run.models[settings.student], lora)
  return Student(settings.student, settings.init_from, lora)


def make_teachers(
  config, settings, run: Run, sources: Sources, encoding: dict
) -> Teachers:
  """The models that score, what they read, how they follow the student."""
  sync, contexts, rollout_contexts = {}, {}, {}
  for role, spec in settings.teacher_sync.items():
    with error_context(f'teacher_sync.{role}'):
      sync[role] = resolve('teacher_sync', spec)
      sync[role](jnp.zeros(1), jnp.zeros(1), 1)
      _check_same_shapes(run, settings.teachers[role], settings.student)
  for role, context in teacher_contexts(settings).items():
    with error_context(f'teacher_contexts.{role}'):
      _check_context(config, settings, run, sources, role, context)
    into = rollout_contexts if reads_rollouts(context) else contexts
    into[role] = _encoder(settings, encoding, context)
  return Teachers(
    settings.teachers.to_dict(),
    sync,
    contexts,
    rollout_contexts,
    settings.teacher_dtype,
    settings.teacher_memory,
  )


def teacher_contexts(settings) -> dict[str, Callable]:
  """Role -> the context of that teacher."""
  contexts = {}
  for role, spec in settings.teacher_contexts.items():
    with error_context(f'teacher_contexts.{role}'):
      contexts[role] = make_context(spec)
  return contexts


def make_context(spec) -> Callable:
  """What a model reads of an example, or of it and the responses."""
  parameters = ('example',)
  if reads_rollouts(find('context', spec)[0]):
    parameters = ('example', 'response', 'others')
  return resolve('context', spec, parameters=parameters)


def student_context(spec) -> Callable:
  """What a student reads, before there is a response."""
  context = make_context(spec)
  if reads_rollouts(context):
    raise ConfigError(
      'it reads the responses, and the student reads it before there are any:'
      ' use it in teacher_contexts'
    )
  return context


def _encoder(settings, encoding: dict, context: Callable) -> Callable:
  """From prompts, or prompts and responses, to the ids that a teacher reads."""
  size = dict(max_prompt_tokens=settings.max_teacher_prompt_tokens)

  def encode(prompts):
    batch = batching.encode_batch(
      prompts.examples, **size, **encoding | {'context': context}
    )
    return batch.prompt, batch.prompt_length

  def encode_of_rollouts(prompts, responses):
    return batching.encode_rollout_contexts(
      prompts,
      responses,
      context,
      max_teacher_prompt_tokens=settings.max_teacher_prompt_tokens,
      tokenizer=encoding['tokenizer'],
      template_kwargs=encoding['template_kwargs'],
    )

  return encode_of_rollouts if reads_rollouts(context) else encode


def _check_context(config, settings, run, sources, role, context) -> None:
  """Refuses a context that does not fit, or that comes too late."""
  most = settings.max_teacher_prompt_tokens
  teacher = run.models[settings.teachers[role]]
  check_positions(
    teacher, 'max_teacher_prompt_tokens', most, run.max_new_tokens
  )
  if not reads_rollouts(context):
    return
  if role in sources.names:
    raise ConfigError(
      f'it reads the responses, and {role!r} generates some of them: take it'
      ' out of response_source'
    )
  if most < config.max_prompt_tokens:
    raise ConfigError(
      f'max_teacher_prompt_tokens = {most} is less than max_prompt_tokens ='
      f' {config.max_prompt_tokens}, and a response without a context'
      " is scored after the student's prompt: raise it"
    )


def make_rollouts(
  config, settings, run: Run, sources: Sources, controlled: Mapping
) -> Rollouts:
  """What generates the responses, and which of them are learnt.

  Args:
    controlled: first values of controlled settings.
  """
  int8 = settings.rollout_dtype == 'int8'
  dtype = '' if int8 else settings.rollout_dtype
  with error_context('filter'):
    keep = resolve('filter', settings.filter)
    if sources.group_size == 1:
      _check_filter_of_one(keep)
  return Rollouts(
    sources={name: sources.count(name) for name in sources.names},
    draw=sources.draw,
    group_size=sources.group_size,
    sampling=_make_sampling(settings, run, controlled),
    decoding=dict(
      max_num_seqs=settings.max_num_seqs or None,
      int8=int8,
      dtype=jnp.dtype(dtype or config.compute_dtype),
    ),
    mixing=_make_mixing(settings, run, sources),
    filter=keep,
    masked_ids=_single_tokens(settings.mask_tokens, run.tokenizer),
  )


def _make_sampling(settings, run: Run, controlled: Mapping) -> Callable:
  """(step, controlled) -> settings of the sampler, plain numbers."""
  numbers = {
    name: read_number(value, f'rollout.{name}')
    for name, value in settings.rollout.items()
  }

  def sampling(step: int, controlled: Mapping[str, float]) -> dict:
    now = {
      name: x.value(step, controlled) if isinstance(x, Scalar) else x
      for name, x in numbers.items()
    }
    max_new_tokens = run.max_new_tokens
    if numbers.get('max_new_tokens', 0):
      max_new_tokens = min(max_new_tokens, max(1, round(now['max_new_tokens'])))
    top_k = round(now.get('top_k', 0))
    return now | dict(top_k=top_k, max_new_tokens=max_new_tokens)

  with error_context('rollout'):
    for name, value in numbers.items():
      if not isinstance(value, Real | Scalar):
        raise ConfigError(f'{name} must be a number or a schedule: {value!r}')
      if isinstance(value, Real) and not abs(value) < 1e30:
        raise ConfigError(f'{name} is out of range, got {value}')
    limit = numbers.get('max_new_tokens', 0)
    if not isinstance(limit, Scalar) and limit < 0:
      raise ConfigError(
        f'max_new_tokens must be at least 0, got {limit}; 0 is'
        ' max_response_tokens'
      )
    for step in (0, settings.steps - 1):
      make_sampling_params(1, **sampling(step, controlled))
  return sampling


def read_callbacks(settings) -> dict[str, Callable]:
  """Name -> (setup) -> callback; a schedule becomes a function of the step."""
  callbacks = {}
  for name, spec in settings.callbacks.items():
    with error_context(f'callbacks.{name}'):
      resolved = read_spec('callback', spec)
      by_step = lambda value, step: value(step, {})
      callbacks[name] = resolved.bind(
        {s.name: partial(by_step, s.value) for s in resolved.scalars()}
      )
  return callbacks


def _try_callbacks(
  specs, settings, run: Run, index: int, sources: Sources
) -> dict[str, Callback]:
  """The callbacks, made once to see whether their settings are right."""
  setup = Setup(
    '',
    'stage',
    settings.steps,
    run.mesh,
    jax.random.fold_in(run.key, index),
    measure=(lambda params, max_new_tokens: {}) if settings.held_out else None,
    lora=bool(settings.lora),
  )
  made = {}
  for name, spec in specs.items():
    with error_context(f'callbacks.{name}'):
      made |= make_callbacks({name: spec}, setup)
      if made[name].off_policy and DATASET in sources.names:
        raise ConfigError(
          'responses of a dataset have no staleness, for they have no'
          " log-probs of a sampler: use response_source='student'"
        )
  return made


def _off_policy(settings, sources, rollouts, made, controlled) -> str:
  """Why responses may not be the student's as it is; '' if they are."""
  if any(callback.off_policy for callback in made.values()):
    return 'responses are of an older student'
  if rollouts.mixing:
    return 'with teacher_mixing a teacher generates, too'
  if STUDENT not in sources.names:
    return ''
  for step in (0, settings.steps - 1):
    temperature = rollouts.sampling(step, controlled).get('temperature', 1.0)
    if not math.isclose(temperature, settings.loss_temperature, rel_tol=1e-6):
      return (
        f'responses are sampled at temperature {temperature:g}, and'
        f' loss_temperature is {settings.loss_temperature:g}'
      )
  return ''


def _check_filter_of_one(keep: Callable) -> None:
  """Refuses a filter that keeps nothing of groups of one response."""
  rewards, ones = np.array([[-1e6], [0.0], [1e6]]), np.ones((3, 1), int)
  if not keep(rewards, ones, ones).any():
    raise ConfigError('it keeps no group of one response: raise group_size')


def _make_mixing(settings, run: Run, sources: Sources) -> dict[str, Callable]:
  """Role of one teacher -> what is sampled of the student and it."""
  mixing = {}
  for role, spec in settings.teacher_mixing.items():
    with error_context(f'teacher_mixing.{role}'):
      if len(settings.teacher_mixing) > 1:
        raise ConfigError(
          f'one teacher can be mixed in, got {len(settings.teacher_mixing)}'
        )
      if STUDENT not in sources.names:
        raise ConfigError("it needs 'student' in response_source")
      if role in settings.teacher_contexts:
        raise ConfigError(
          f"it reads the student's prompt: take {role!r} out of"
          ' teacher_contexts'
        )
      mixing[role] = resolve('teacher_mixing', spec)
      shape = jax.ShapeDtypeStruct((1, run.vocab_size), jnp.float32)
      jax.eval_shape(mixing[role], shape, shape)
  return mixing


def make_update(settings, loss: Loss, sources: Sources) -> Update:
  """The optimizer, and how a batch is divided for it."""
  with error_context('optimizer'):
    tx, learning_rate = make_optimizer(settings)
  rows_together = 1
  if loss.reads.scope == 'group':
    rows_together = sources.group_size
    prompts = settings.batch_size // settings.num_minibatches
    if prompts % (parts := settings.gradient_accumulation_steps):
      raise ConfigError(
        f'the loss compares the responses to a prompt, and {prompts} prompts'
        ' (batch_size / num_minibatches) do not divide into'
        f' gradient_accumulation_steps = {parts}'
      )
  return Update(
    tx,
    learning_rate,
    num_minibatches=settings.num_minibatches,
    gradient_accumulation_steps=settings.gradient_accumulation_steps,
    rows_together=rows_together,
    grad_norm_spike=settings.grad_norm_spike,
    max_consecutive_skips=settings.max_consecutive_skips,
  )


def make_optimizer(
  settings,
) -> tuple[optax.GradientTransformation, Callable[[int], float]]:
  """The optimizer of a stage with clipping, and its learning rate by update.

  The rate of update t (from 0) is learning_rate * (t + 1) / (warmup_steps + 1)
  during warm-up, so that no update has a rate of 0; then lr_schedule over the
  updates that are left of steps * num_minibatches.

  Raises:
    ConfigError: optax has no such optimizer, or it no such argument, or there
      is no such lr_schedule.
  """
  name = settings.lr_schedule
  if name not in _LR_SCHEDULES:
    raise ConfigError(
      f'there is no lr_schedule {name!r}{did_you_mean(name, _LR_SCHEDULES)}'
    )
  warmup, peak = settings.warmup_steps, settings.learning_rate
  remaining = max(1, settings.steps * settings.num_minibatches - warmup)
  rate = optax.join_schedules(
    [
      optax.linear_schedule(peak / (warmup + 1), peak, warmup),
      _LR_SCHEDULES[name](peak, remaining),
    ],
    [warmup],
  )
  function, arguments = _find_optimizer(settings.optimizer)
  tx = function(learning_rate=rate, **arguments)
  if settings.max_grad_norm:
    tx = optax.chain(optax.clip_by_global_norm(settings.max_grad_norm), tx)
  return tx, rate


def _find_optimizer(spec) -> tuple[Callable, dict]:
  """An optimizer of optax, or a function of a user's own, and its settings."""
  arguments = dict(spec)
  name = arguments.pop('name', '')
  known = {
    n: f
    for n, f in public_functions(optax).items()
    if not n.startswith('scale_by_')
    and 'learning_rate' in inspect.signature(f).parameters
  }
  if not isinstance(name, str) and not callable(name):
    raise ConfigError(f'optimizer.name must be a name or a function: {name!r}')
  if name in known:
    function = known[name]
  elif callable(name) or ':' in name:
    function = find('optimizer', name)[0]
  else:
    raise ConfigError(
      f'optax has no optimizer {name!r}{did_you_mean(name, known)}'
    )
  parameters = dict(inspect.signature(function).parameters)
  parameters.pop('learning_rate', None)
  check_arguments(arguments, parameters, f'optimizer {name}')
  return function, arguments


def make_prompts(
  config,
  index: int,
  run: Run,
  encoding: dict,
  rejected: RejectedRows,
  sources: Sources,
  keep: Callable,
) -> Prompts:
  """The iterator over a stage's prompts, and those held out of it."""
  settings = config[config.stages[index]]
  imitates = DATASET in sources.names
  spec = settings.data or config.data
  with error_context('data'):
    terms = read_terms(settings.loss.to_dict(), sources).values()
    graded = needs_reward(terms) or declares_reward(keep)
    if graded and any({*group} == {DATASET} for group in sources.groups):
      raise ConfigError(
        'the loss or filter reads rewards, and responses of a dataset are not'
        ' graded: choose another response_source'
      )
    row_filter = RowFilter(rejected, plain(spec))
    examples = row_filter.select(
      make_examples(spec),
      _example_check(settings, run, encoding, sources, graded),
    )
    learnt = len(examples) - settings.held_out
    if learnt < 1:
      raise ConfigError(
        f'held_out = {settings.held_out} leaves none of the {len(examples)}'
        ' examples to train on'
      )
    examples, held_out = examples[:learnt], examples[learnt:]
    if imitates:
      _note_boundary(examples[0], **encoding)
    _check_domains(examples, sources)
    batches = batching.make_iterator(
      examples,
      batch_size=settings.batch_size,
      max_prompt_tokens=config.max_prompt_tokens,
      max_response_tokens=config.max_response_tokens if imitates else 0,
      seed=random_streams.data_seed(config.seed, index),
      reject=row_filter.reject,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      **encoding,
    )
    row_filter.check_fraction()
  return Prompts(
    batches, sources.domains, _encode_held_out(config, run, encoding, held_out)
  )


def _encode_held_out(config, run: Run, encoding: dict, examples):
  """The examples that are held out, encoded; None if there are none."""
  if not examples:
    return None
  with error_context('held_out'):
    for example in examples:
      with error_context(f'example {example.id}'):
        check_answer(example, run.reward, required=True)
    sharding.check_batch(run.mesh, len(examples))
  return batching.encode_batch(
    examples, max_prompt_tokens=config.max_prompt_tokens, **encoding
  )


def declares_reward(keep: Callable) -> bool:
  """Whether a filter declares that it reads rewards."""
  inner = keep
  while isinstance(inner, partial):
    inner = inner.func
  return hasattr(inner, 'reads') and reads_of(keep).reward


def make_examples(spec):
  """The examples of a source, a function whose arguments are all settings.

  Raises:
    ConfigError: as for `resolve`, or the source refuses its data.
  """
  function, arguments = find('source', spec)
  if 'parts' in arguments:
    parts = {}
    for name, part in arguments['parts'].items():
      with error_context(f'parts.{name}'):
        parts[name] = make_examples(part)
    arguments['parts'] = parts
  read = resolve('source', {'name': function, **arguments})
  return data_rows.make_examples(read(), function.__name__)


def _example_check(
  settings, run: Run, encoding: dict, sources: Sources, graded: bool
) -> Callable[[Example], None]:
  """A function that raises where the stage cannot use an example."""
  contexts = teacher_contexts(settings)

  def check(example: Example) -> None:
    if DATASET in sources.names and example.response is None:
      raise ConfigError(
        'the stage learns the responses of the dataset, and the row has none'
      )
    if {*sources.names} != {DATASET}:
      check_answer(example, run.reward, required=graded)
    for role, context in contexts.items():
      with error_context(f'teacher_contexts.{role}'):
        responses = ()
        if reads_rollouts(context):
          responses = ScoredResponse('', 0.0), [ScoredResponse('', 1.0)]
        ids = encode_prompt(
          run.tokenizer,
          context(example, *responses),
          template_kwargs=encoding['template_kwargs'],
        )
      if len(ids) > (most := settings.max_teacher_prompt_tokens):
        raise Unfit(
          f'teacher_contexts.{role}: {len(ids)} tokens, more than'
          f' max_teacher_prompt_tokens = {most}'
        )

  return check


def _note_boundary(example: Example, *, context: Callable, **encoding) -> None:
  """Logs where imitation sees other tokens than the chat template renders.

  No error: templates that add an empty thinking block do it on purpose.
  """
  try:
    check_boundary(
      messages=context(example), response=example.response, **encoding
    )
  except ValueError as error:
    _log.info('note: example %s: %s', example.id, error)


def _check_domains(examples, sources: Sources) -> None:
  """Refuses a name in `rows` of a term that no example has as its domain."""
  if not sources.domains:
    return
  known = {example.domain for example in examples} - {''}
  for name in sources.domains:
    if name not in known:
      raise ConfigError(
        f"'rows' of a term names {name!r}, which is neither a response source"
        ' nor a domain of the data'
        f'{did_you_mean(name, (*sources.names, *known))}'
      )


def _check_sizes(settings, run: Run, sources: Sources) -> None:
  """Refuses numbers of rows that the mesh cannot divide."""
  for name in {*sources.names} - {DATASET}:
    with error_context(f'response_source {name!r}'):
      sharding.check_batch(run.mesh, settings.batch_size * sources.count(name))
  parts = settings.num_minibatches * settings.gradient_accumulation_steps
  total = settings.batch_size * sources.group_size
  with error_context('batch_size'):
    sharding.check_batch(run.mesh, total // parts)
  check_max_num_seqs(run.mesh, settings.max_num_seqs or None)


def _check_same_shapes(run: Run, name: str, other: str) -> None:
  """Refuses two models of which one cannot take the other's weights."""
  shapes = [
    jax.eval_shape(run.models[model].init, jax.random.key(0))
    for model in (name, other)
  ]
  if shapes[0] != shapes[1]:
    raise ConfigError(f'the architectures of {name!r} and {other!r} differ')


def _single_tokens(texts, tokenizer) -> tuple[int, ...]:
  """The ids of texts that are one token each."""
  ids = []
  for text in texts:
    tokens = tokenizer.encode(text, add_special_tokens=False)
    if len(tokens) != 1:
      raise ConfigError(
        f'mask_tokens: {text!r} is {len(tokens)} tokens, {tokens}; name texts'
        ' of one token'
      )
    ids += tokens
  return tuple(ids)


def _fingerprint(config, settings, made: Mapping[str, Callback]) -> dict:
  """What a checkpoint must agree on, as it comes back from a file."""
  names = ('lora', 'optimizer', 'teacher_sync', 'student', 'init_from')
  agreed = {name: settings[name] for name in (*names, 'num_minibatches')}
  agreed |= dict(seed=config.seed, models=config.models)
  agreed['callbacks'] = {
    name: settings.callbacks[name]
    for name, callback in made.items()
    if callback.get_state()
  }
  return plain(agreed)


def _models_of(config, stages) -> frozenset[str]:
  """The models that stages use, those that they start from too."""
  return frozenset(
    name
    for stage in map(config.get, stages)
    for name in (stage.student, stage.init_from, *stage.teachers.values())
    if name
  )
