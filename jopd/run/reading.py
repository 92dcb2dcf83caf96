"""What the models of a stage read: its prompts, and what teachers are told."""

from collections.abc import Callable
from functools import partial
import logging

import jax

from jopd.data import batching, contexts
from jopd.data.contexts import reads_rollouts
from jopd.data.examples import Example, ScoredResponse, Unfit
from jopd.data.filtering import RowFilter
from jopd.data.prompts import encode_prompt
from jopd.run import checks
from jopd.run.config import about
from jopd.run.resolve import make_examples, resolve
from jopd.run.response_sources import DATASET, Rows
from jopd.train.stage import Run


_log = logging.getLogger(__name__)


def make_batches(
  config, index: int, run: Run, encoding, rejected, *, rows: Rows, graded
):
  """The stage's iterator over prompts, and the examples that it leaves out."""
  settings = config[config.stages[index]]
  imitates = DATASET in rows.sources
  spec = settings.data or config.data
  with about('data'):
    found = make_examples(spec)
    if graded and any({*group} == {DATASET} for group in rows.groups):
      raise ValueError(
        'terms or select read rewards, and responses of a dataset alone are not'
        ' graded; choose another source, or credits and rules without'
      )
    row_filter = RowFilter(rejected, spec)
    suits = _suits(settings, run, encoding, rows, graded)
    examples = row_filter.select(found, suits)
    learnt = len(examples) - settings.held_out
    if learnt < 1:
      raise ValueError(
        f'held_out = {settings.held_out} leaves nothing of the'
        f' {len(examples)} examples to learn from'
      )
    examples, apart = examples[:learnt], examples[learnt:]
    if imitates:
      checks.note_boundary(examples[0], _log.info, **encoding)
    checks.check_domains(examples, rows)
    batches = batching.make_iterator(
      examples,
      batch_size=settings.batch_size,
      max_prompt_tokens=config.max_prompt_tokens,
      max_response_tokens=config.max_response_tokens if imitates else 0,
      # Not seed + index: stage 1 of one seed is not stage 0 of the next.
      seed=(1000 * config.seed + index) % 2**32,
      reject=row_filter.reject,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      **encoding,
    )
    row_filter.check_fraction()
  return batches, apart


def _suits(settings, run: Run, encoding, rows: Rows, graded) -> Callable:
  """(example) -> None, or an error where the stage cannot use it."""
  told = _resolved(settings)
  options = dict(template_kwargs=encoding['template_kwargs'])

  def check(example: Example) -> None:
    if DATASET in rows.sources:
      checks.check_response(example)
    if {*rows.sources} != {DATASET}:
      checks.check_answer(example, run.reward, required=graded)
    for role, context in told.items():
      with about(f'contexts.{role}'):
        messages = context(example, *_some_attempts(context))
        ids = encode_prompt(run.tokenizer, messages, **options)
      if len(ids) > settings.max_teacher_prompt_tokens:
        raise Unfit(
          f'contexts.{role}: {len(ids)} tokens, more than max_teacher_prompt_tokens ='
          f' {settings.max_teacher_prompt_tokens}'
        )

  return check


def _resolved(settings) -> dict[str, Callable]:
  """Role -> the context of that teacher."""
  found = {}
  for role, spec in settings.teacher_contexts.items():
    with about(f'contexts.{role}'):
      found[role] = resolve(contexts, spec)
  return found


def _some_attempts(context: Callable) -> tuple:
  """What a context is told of, for a trial."""
  if not reads_rollouts(context):
    return ()
  return ScoredResponse('', 0.0), [ScoredResponse('', 1.0)]


def make_contexts(settings, encoding) -> dict[str, Callable]:
  """Role -> (prompts) -> what that teacher reads instead."""

  def read(context, prompts):
    batch = batching.encode_batch(
      prompts.examples,
      max_prompt_tokens=settings.max_teacher_prompt_tokens,
      **(encoding | {'context': context}),
    )
    return batch.prompt, batch.prompt_length

  found = _resolved(settings)
  return {
    role: partial(read, context)
    for role, context in found.items()
    if not reads_rollouts(context)
  }


def make_rollout_contexts(settings, encoding) -> dict[str, Callable]:
  """Role -> (prompts, attempts) -> what that teacher reads of each response."""

  def tell(context, prompts, attempts):
    return batching.encode_rollout_contexts(
      prompts,
      attempts,
      context,
      max_teacher_prompt_tokens=settings.max_teacher_prompt_tokens,
      tokenizer=encoding['tokenizer'],
      template_kwargs=encoding['template_kwargs'],
    )

  found = _resolved(settings)
  return {
    role: partial(tell, context)
    for role, context in found.items()
    if reads_rollouts(context)
  }
