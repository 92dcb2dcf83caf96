"""From the settings of a stage to a stage: names resolved, data read."""

from collections.abc import Callable
import json
import types

import jax
import jax.numpy as jnp
import numpy as np

from jopd import sharding
from jopd.data import contexts
from jopd.data.contexts import reads_rollouts
from jopd.data.filtering import RejectedRows
from jopd.losses import term_reads
from jopd.models.lora import Lora, adapter_axes
from jopd.rollout import teacher_mixing
from jopd.rollout.continuous_batching import STOP
from jopd.rollout.engine import check_slots
from jopd.run import checks, feedback
from jopd.run.config import about
from jopd.run.optimizers import make_optimizer
from jopd.run.reading import make_batches, make_contexts, make_rollout_contexts
from jopd.run.resolve import make_reduction, make_terms, reads_rewards, resolve
from jopd.run.response_sources import (
  DATASET,
  STUDENT,
  Rows,
  draw,
  make_rows,
  members,
)
from jopd.run.schedules import at_step
from jopd.train import filters as selection
from jopd.train import teacher_sync
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

_BLENDED = 'with a blend responses are of a teacher, too'


def make_stage(
  config, index: int, run: Run, encoding, rejected: RejectedRows
) -> Stage:
  """A stage from its settings, which `run/checks.py` has seen; no weights yet.

  Args:
    config: of the run.
    index: of the stage, among config.stages.
    run: what all stages share.
    encoding: of `data.batching`: tokenizer, stop_id, template_kwargs, context.
    rejected: takes the rows that the stage cannot use.

  Raises:
    ValueError: a name, an argument or the data is wrong.
  """
  settings = config[config.stages[index]]
  encoding = encoding | _own_context(settings)
  with about('optimizer'):
    tx, learning_rate = make_optimizer(settings)
  groups = members(settings)
  terms, roles = settings.loss.to_dict(), tuple(settings.teachers)
  rows = make_rows(groups, terms)
  _check_sizes(settings, run, rows)
  _check_contexts(config, settings, run, rows)
  if settings.init_from:
    with about('init_from'):
      _check_alike(run, settings.init_from, settings.student)
  changes, controlled, others = feedback.make_changes(
    settings, run, rows.sources
  )
  blend = _blend(settings, run, rows)
  make, scalars = make_terms(
    terms,
    roles,
    run.vocab_size,
    rows=rows,
    updates=settings.num_minibatches,
    micro_batches=settings.gradient_accumulation_steps,
    last=settings.steps * settings.num_minibatches - 1,
    controlled=controlled,
    others=others or (_BLENDED if blend else ''),
  )
  in_terms = reads_rewards(at_step(terms, 0, controlled), roles, run.vocab_size)
  select, in_select = _selection(settings, rows.group_size)
  # Later than terms: a misspelt loss should not wait for the data to be read.
  batches, apart = make_batches(
    config,
    index,
    run,
    encoding,
    rejected,
    rows=rows,
    graded=in_terms or in_select,
  )
  with about('held_out'):
    held_out = feedback.make_held_out(config, index, run, encoding, apart)
  shards = sharding.batch_parts(run.mesh)
  return Stage(
    name=config.stages[index],
    index=index,
    steps=settings.steps,
    eval_every=settings.eval_every,
    student=Student(settings.student, settings.init_from, _lora(settings, run)),
    teachers=Teachers(
      settings.teachers.to_dict(),
      sync=_moving(settings, run),
      contexts=make_contexts(settings, encoding),
      rollout_contexts=make_rollout_contexts(settings, encoding),
      dtype=settings.teacher_dtype,
      memory=settings.teacher_memory,
    ),
    prompts=Prompts(batches, rows.domains),
    rollouts=Rollouts(
      sources={name: rows.most(name) for name in rows.sources},
      draw=draw(groups),
      group_size=rows.group_size,
      sampling=changes.pop('sampling'),
      decoding=_decoding(config, settings),
      mixing=blend,
      filter=select,
      masked_ids=_token_ids(settings.mask_tokens, run.tokenizer),
    ),
    loss=Loss(
      make,
      scalars,
      reads=types.SimpleNamespace(reward=in_terms),
      aggregation=make_reduction(settings.loss_aggregation),
      temperature=settings.loss_temperature,
      chunk_tokens=settings.loss_chunk_tokens * shards,
    ),
    update=Update(
      tx,
      learning_rate,
      num_minibatches=settings.num_minibatches,
      gradient_accumulation_steps=settings.gradient_accumulation_steps,
      rows_together=_together(settings, make(scalars(0, controlled)), rows),
      grad_norm_spike=settings.grad_norm_spike,
      max_consecutive_skips=settings.max_consecutive_skips,
    ),
    callbacks={},
    fingerprint=_fingerprint(config, settings),
    later=_used(config, config.stages[index + 1 :]),
    held_out=held_out,
    held_out_every=settings.held_out_every,
    **changes,
  )


def _own_context(settings) -> dict:
  """What the student reads, if the stage has a context of its own."""
  if not settings.context:
    return {}
  with about('context'):
    own = resolve(contexts, settings.context)
    checks.check_own_context(own)
  return dict(context=own)


def _decoding(config, settings) -> dict:
  """How rollouts are computed, options of `make_generate`."""
  int8 = settings.rollout_dtype == 'int8'
  dtype = '' if int8 else settings.rollout_dtype
  dtype = jnp.dtype(dtype or config.compute_dtype)
  return dict(
    slots=settings.max_num_seqs or None, int8=int8, compute_dtype=dtype
  )


def _blend(settings, run: Run, rows: Rows) -> dict[str, Callable]:
  """Role of a teacher -> what is sampled of the student and it."""
  blend = {}
  for role, spec in settings.teacher_mixing.items():
    with about(f'blend.{role}'):
      if len(settings.teacher_mixing) > 1:
        raise ValueError(
          f'one teacher can have a say, and {len(settings.teacher_mixing)} are named'
        )
      if STUDENT not in rows.sources:
        raise ValueError('the student writes nothing here: add it to source')
      if role in settings.teacher_contexts:
        raise ValueError(
          'both read the prompt of the student, and this teacher has a context'
          ' of its own: take it out of contexts'
        )
      blend[role] = resolve(teacher_mixing, spec)
      shape = jax.ShapeDtypeStruct((1, run.vocab_size), jnp.float32)
      jax.eval_shape(blend[role], shape, shape)
  return blend


def _fingerprint(config, settings) -> dict:
  """What a checkpoint must agree on, as it comes back from a file."""
  plain = lambda section: json.loads(section.to_json())
  names = ('lora', 'optimizer', 'teacher_sync', 'controllers', 'replay')
  found = {name: plain(settings[name]) for name in names}
  found |= {
    name: settings[name] for name in ('student', 'init_from', 'num_minibatches')
  }
  # Whether, and not how: the state has an origin then.
  found |= dict(weight_extrapolation=bool(settings.weight_extrapolation))
  return found | dict(seed=config.seed, models=plain(config.models))


def _used(config, stages) -> frozenset[str]:
  """The models that stages need, those that they start from too."""
  return frozenset(
    name
    for stage in map(config.get, stages)
    for name in (stage.student, stage.init_from, *stage.teachers.values())
    if name
  )


def _check_sizes(settings, run: Run, rows: Rows) -> None:
  """Refuses numbers of rows that the mesh cannot divide."""
  for name in {*rows.sources} - {DATASET}:
    with about(f'source {name!r}'):
      sharding.check_batch(run.mesh, settings.batch_size * rows.most(name))
  parts = settings.num_minibatches * settings.gradient_accumulation_steps
  every = settings.batch_size * rows.group_size
  sharding.check_batch(run.mesh, every // parts)
  check_slots(run.mesh, settings.max_num_seqs or None)


def _together(settings, terms, rows: Rows) -> int:
  """How many consecutive rows micro-batches must not part."""
  far = [name for name, t in terms.items() if term_reads(t).scope == 'group']
  if not far:
    return 1
  prompts = settings.batch_size // settings.num_minibatches
  if prompts % settings.gradient_accumulation_steps:
    raise ValueError(
      f'terms.{far[0]}: its weight or credit looks at the responses to a'
      f' prompt, and {prompts} prompts (batch_size / updates) do not divide'
      f' into {settings.gradient_accumulation_steps} micro_batches'
    )
  return rows.group_size


def _check_contexts(config, settings, run: Run, rows: Rows) -> None:
  """Refuses contexts that do not fit, or that come too late."""
  context = 'max_teacher_prompt_tokens', settings.max_teacher_prompt_tokens
  for role, spec in settings.teacher_contexts.items():
    with about(f'contexts.{role}'):
      teacher = run.models[settings.teachers[role]]
      checks.check_positions(teacher, context, run.max_new_tokens)
      if not reads_rollouts(resolve(contexts, spec)):
        continue
      if role in rows.sources:
        raise ValueError(
          'it tells of the responses, and this teacher writes one of them: take'
          ' it out of source'
        )
      if settings.max_teacher_prompt_tokens < config.max_prompt_tokens:
        raise ValueError(
          f'max_teacher_prompt_tokens = {settings.max_teacher_prompt_tokens} is less than'
          f' max_prompt_tokens = {config.max_prompt_tokens}, and where there is'
          ' nothing to tell the prompt alone is read: raise it'
        )


def _selection(settings, group_size: int) -> tuple[Callable, bool]:
  """The rule that selects rows, and whether it needs rewards."""
  with about('filter'):
    rule = resolve(selection, settings.filter)
    rewards = np.array([[-1e6, -1e6], [1e6, 1e6], [1e6, -1e6]])
    short, done = np.ones((3, 2), int), np.full((3, 2), STOP)
    of_pairs = rule(rewards, short, done)
    alone = rule(rewards[:, :1], short[:, :1], done[:, :1])
    if group_size == 1 and of_pairs.any() and not alone.any():
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
  for role, spec in settings.teacher_sync.items():
    with about(f'moving.{role}'):
      moving[role] = resolve(teacher_sync, spec)
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
