"""From the settings of a stage to a stage: names resolved, data read."""

from collections.abc import Callable
from functools import partial
import json

import jax
import jax.numpy as jnp
import numpy as np

from jopd import checks, feedback, sharding
from jopd.config import about
from jopd.data import batching, contexts
from jopd.data.examples import Example, Unfit
from jopd.data.prompts import encode_prompt
from jopd.data.quarantine import Quarantine
from jopd.models.lora import Lora, adapter_axes
from jopd.optimizers import make_optimizer
from jopd.recipe import (
  make_examples,
  make_reduction,
  make_terms,
  reads_rewards,
  resolve,
)
from jopd.rollout import select as selection
from jopd.rollout.engine import check_slots
from jopd.rollout.slots import STOP
from jopd.schedules import at_step
from jopd.train import followers
from jopd.train.pacing import Pace
from jopd.train.stage import Run, Stage

# Settings that a stage has under the same names.
_AS_THEY_ARE = (
  'student',
  'start',
  'teacher_dtype',
  'teacher_memory',
  'source',
  'spike',
  'max_skipped',
  'steps',
  'updates',
  'group_size',
  'micro_batches',
  'temperature',
  'eval_every',
  'held_out_every',
)


def make_stage(
  config, index: int, run: Run, encoding, quarantine: Quarantine
) -> Stage:
  """A stage from its settings, which `checks.py` has seen; no weights yet.

  Args:
    config: of the run.
    index: of the stage, among config.stages.
    run: what all stages share.
    encoding: of `data.batching`: tokenizer, stop_id, template_kwargs, context.
    quarantine: takes the rows that the stage cannot use.

  Raises:
    ValueError: a name, an argument or the data is wrong.
  """
  settings = config[config.stages[index]]
  if settings.context:
    with about('context'):
      own = resolve(contexts, settings.context)
    encoding = encoding | dict(context=own)
  tx, learning_rate = make_optimizer(settings)
  int8 = settings.rollout_dtype == 'int8'
  dtype = '' if int8 else settings.rollout_dtype
  dtype = jnp.dtype(dtype or config.compute_dtype)
  parts = settings.updates * settings.micro_batches
  rows = settings.batch_size * settings.group_size // parts
  sharding.check_batch(run.mesh, rows)
  check_slots(run.mesh, settings.slots or None)
  _check_contexts(settings, run)
  if settings.start:
    with about('start'):
      _check_alike(run, settings.start, settings.student)
  terms, roles = settings.terms.to_dict(), tuple(settings.teachers)
  pace = feedback.make_pace(settings)
  paced = Pace(pace).values()
  make = make_terms(
    terms,
    roles,
    run.vocab_size,
    updates=settings.updates,
    micro_batches=settings.micro_batches,
    group_size=settings.group_size,
    last=settings.steps * settings.updates - 1,
    paced=paced,
  )
  in_terms = reads_rewards(at_step(terms, 0, paced), roles, run.vocab_size)
  select, in_select = _selection(settings)
  return Stage(
    name=config.stages[index],
    index=index,
    **{name: settings[name] for name in _AS_THEY_ARE},
    lora=_lora(settings, run),
    teachers=settings.teachers.to_dict(),
    contexts=_contexts(settings, encoding),
    moving=_moving(settings, run),
    make_terms=make,
    reads_rewards=in_terms,
    reduction=make_reduction(settings.reduce),
    tx=tx,
    learning_rate=learning_rate,
    decoding=dict(slots=settings.slots or None, int8=int8, compute_dtype=dtype),
    later=_used(config, config.stages[index + 1 :]),
    sampling=feedback.make_sampling(settings, run, paced),
    pace=pace,
    foresight=feedback.make_foresight(settings),
    select=select,
    masked_ids=_token_ids(settings.mask_tokens, run.tokenizer),
    chunk_tokens=settings.chunk_tokens * sharding.batch_parts(run.mesh),
    fingerprint=_fingerprint(config, settings),
    # Last: a misspelt loss should not wait for the data to be read.
    **_data(
      config, index, run, encoding, quarantine, graded=in_terms or in_select
    ),
  )


def _fingerprint(config, settings) -> dict:
  """What a checkpoint must agree on, as it comes back from a file."""
  plain = lambda section: json.loads(section.to_json())
  names = ('lora', 'optimizer', 'moving', 'pace')
  return {name: plain(settings[name]) for name in names} | dict(
    seed=config.seed,
    models=plain(config.models),
    student=settings.student,
    start=settings.start,
    updates=settings.updates,
    # Whether, and not how: the state has an origin then.
    foresight=bool(settings.foresight),
  )


def _used(config, stages) -> frozenset[str]:
  """The models that stages need, those that they start from too."""
  return frozenset(
    name
    for stage in map(config.get, stages)
    for name in (stage.student, stage.start, *stage.teachers.values())
    if name
  )


def _check_contexts(settings, run: Run) -> None:
  """Refuses contexts that are longer than a teacher's positions."""
  context = 'max_context_tokens', settings.max_context_tokens
  for role in settings.contexts:
    with about(f'contexts.{role}'):
      teacher = run.models[settings.teachers[role]]
      checks.check_positions(teacher, context, run.max_response_tokens)


def _selection(settings) -> tuple[Callable, bool]:
  """The rule that selects rows, and whether it needs rewards."""
  with about('select'):
    rule = resolve(selection, settings.select)
    rewards = np.array([[-1e6, -1e6], [1e6, 1e6], [1e6, -1e6]])
    short, done = np.ones((3, 2), int), np.full((3, 2), STOP)
    of_pairs = rule(rewards, short, done)
    alone = rule(rewards[:, :1], short[:, :1], done[:, :1])
    if settings.group_size == 1 and of_pairs.any() and not alone.any():
      raise ValueError('it keeps nothing of groups of one: raise group_size')
  try:
    rule(None, short, done)
  except Exception:  # it may fail on None in any way
    return rule, True
  return rule, False


def _lora(settings, run: Run) -> Lora | None:
  """Which adapters the student has."""
  if not settings.lora:
    return None
  with about('lora'):
    spec = settings.lora.to_dict()
    found = Lora(**spec | {'targets': tuple(spec.get('targets', ()))})
    adapter_axes(run.models[settings.student], found)
  return found


def _moving(settings, run: Run) -> dict[str, Callable]:
  """Role -> how that teacher follows the student."""
  moving = {}
  for role, spec in settings.moving.items():
    with about(f'moving.{role}'):
      moving[role] = resolve(followers, spec)
      moving[role](jnp.zeros(1), jnp.zeros(1), 1)
      _check_alike(run, settings.teachers[role], settings.student)
  return moving


def _check_alike(run: Run, one: str, other: str) -> None:
  """Refuses two models of which one cannot take over the other's weights."""
  shapes = [
    jax.eval_shape(run.models[name].init, jax.random.key(0))
    for name in (one, other)
  ]
  if shapes[0] != shapes[1]:
    raise ValueError(
      f'{one!r} is built otherwise than {other!r}, and the weights of one do'
      ' not fit into the other: take two models of the same sizes'
    )


def _token_ids(texts, tokenizer) -> tuple[int, ...]:
  """The ids of texts that are one token each."""
  ids = []
  for text in texts:
    found = tokenizer.encode(text, add_special_tokens=False)
    if len(found) != 1:
      raise ValueError(
        f'mask_tokens: {text!r} is {len(found)} tokens, {found}; name texts'
        ' that are one token'
      )
    ids += found
  return tuple(ids)


def _data(config, index: int, run: Run, encoding, quarantine, *, graded):
  """The stage's iterator over prompts, and the prompts that it leaves out."""
  settings = config[config.stages[index]]
  imitates = settings.source == 'dataset'
  spec = settings.data or config.data
  with about('data'):
    rows = make_examples(spec)
    if imitates and graded:
      raise ValueError(
        'terms or select read rewards, and responses of a dataset are not'
        ' graded; choose another source, or credits and rules without'
      )
    sieve = quarantine.sieve(spec)
    examples = sieve.sift(rows, _suits(settings, run, encoding, graded))
    apart = len(examples) - settings.held_out
    if apart < 1:
      raise ValueError(
        f'held_out = {settings.held_out} leaves nothing of the'
        f' {len(examples)} examples to learn from'
      )
    examples, held_out = examples[:apart], examples[apart:]
    if imitates:
      checks.note_boundary(examples[0], run.say, **encoding)
    batches = batching.make_iterator(
      examples,
      batch_size=settings.batch_size,
      max_prompt_tokens=config.max_prompt_tokens,
      max_response_tokens=config.max_response_tokens if imitates else 0,
      # Not seed + index: stage 1 of one seed is not stage 0 of the next.
      seed=(1000 * config.seed + index) % 2**32,
      reject=sieve.reject,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      **encoding,
    )
    sieve.judge()
  with about('held_out'):
    measure = feedback.make_held_out(config, index, run, encoding, held_out)
  return dict(batches=batches, held_out=measure)


def _suits(settings, run: Run, encoding, graded: bool) -> Callable:
  """(example) -> None, or an error where the stage cannot use it."""
  told = {
    role: resolve(contexts, spec) for role, spec in settings.contexts.items()
  }
  imitates = settings.source == 'dataset'
  options = dict(template_kwargs=encoding['template_kwargs'])

  def check(example: Example) -> None:
    if imitates:
      checks.check_response(example)
    else:
      checks.check_answer(example, run.grade, required=graded)
    for role, context in told.items():
      with about(f'contexts.{role}'):
        ids = encode_prompt(run.tokenizer, context(example), **options)
      if len(ids) > settings.max_context_tokens:
        raise Unfit(
          f'contexts.{role}: {len(ids)} tokens, more than max_context_tokens ='
          f' {settings.max_context_tokens}'
        )

  return check


def _contexts(settings, encoding) -> dict[str, Callable]:
  """Role -> (prompts) -> what that teacher reads instead."""

  def read(context, prompts):
    batch = batching.encode_batch(
      prompts.examples,
      max_prompt_tokens=settings.max_context_tokens,
      **(encoding | {'context': context}),
    )
    return batch.prompt, batch.prompt_length

  return {
    role: partial(read, resolve(contexts, spec))
    for role, spec in settings.contexts.items()
  }
