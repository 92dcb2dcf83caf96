"""Batches of one fixed shape, in an order that can be saved and resumed."""

from collections.abc import Callable, Mapping, Sequence
import hashlib
import logging
import typing
from typing import NamedTuple

from jaxtyping import Int32
import numpy as np

from jopd.data import contexts, prompts
from jopd.data.examples import Example, ScoredResponse, Unfit

if typing.TYPE_CHECKING:  # imported late: it takes seconds
  import transformers

_log = logging.getLogger(__name__)


class PromptBatch(NamedTuple):
  """B examples as token ids, padded on the right with zeros.

  Attributes:
    ids: of the examples.
    prompt: [B, P] int32.
    prompt_length: [B] int32, at least 1.
    response: [B, T] int32, the demonstration with its stop token.
    response_length: [B] int32, stop token included; 0 for an example without a
      demonstration, and if demonstrations are not read (T = 0).
    examples: the examples themselves, for rewards and for other contexts.
    messages: the chat turns of each prompt.
  """

  ids: list[str]
  prompt: Int32[np.ndarray, 'B P']
  prompt_length: Int32[np.ndarray, ' B']
  response: Int32[np.ndarray, 'B T']
  response_length: Int32[np.ndarray, ' B']
  examples: list[Example]
  messages: list[list[dict]]


def encode_batch(
  examples: Sequence[Example],
  tokenizer: 'transformers.PreTrainedTokenizerBase',
  *,
  max_prompt_tokens: int,
  max_response_tokens: int = 0,
  stop_id: int | None = None,
  template_kwargs: Mapping[str, object] | None = None,
  context: Callable[[Example], list[dict]] = contexts.same,
) -> PromptBatch:
  """Encodes the examples, in order, into one batch.

  For evaluation, and for the prompts of a teacher that reads another context
  than the student: `encode_batch(batch.examples, ..., context=...)`.

  Args:
    examples: B of them.
    tokenizer: a transformers tokenizer with a chat template.
    max_prompt_tokens: P, the places for a prompt.
    max_response_tokens: T, the places for a demonstration and its stop token;
      0 leaves demonstrations unread.
    stop_id: the token that ends a response; None is `prompts.turn_end`.
    template_kwargs: variables of the chat template.
    context: (example) -> messages, which the model reads.

  Raises: ValueError with the first example that does not fit or that the chat
    template refuses. Nothing is cut.
  """
  options = (max_response_tokens, stop_id, template_kwargs, context)
  rows = _encode(examples, tokenizer, *options)
  shape = (max_prompt_tokens, max_response_tokens)
  rows = _fitting(rows, shape)
  return _stack(rows, examples, shape, context)


def make_iterator(
  source: Sequence[Example],
  tokenizer: 'transformers.PreTrainedTokenizerBase',
  *,
  batch_size: int,
  max_prompt_tokens: int,
  max_response_tokens: int = 0,
  seed: int = 0,
  shuffle: bool = True,
  reject: Callable[[int, ValueError], None] | None = None,
  stop_id: int | None = None,
  template_kwargs: Mapping[str, object] | None = None,
  context: Callable[[Example], list[dict]] = contexts.same,
  process_index: int = 0,
  process_count: int = 1,
) -> 'PromptIterator':
  """An endless iterator of `PromptBatch`, all of one shape, that can resume.

  Each epoch has every example once, in an order of its own; a batch may span
  two epochs, so no example is dropped. Every example is encoded here, once
  (about 0.1 ms each): which examples fit decides the order. Batch b is rows
  b * batch_size onwards of an order that depends on the seed and the data
  alone; with several processes each gets its own consecutive part of it.

  Args:
    source: the examples.
    tokenizer, max_prompt_tokens, max_response_tokens, stop_id,
      template_kwargs, context: as in `encode_batch`.
    batch_size: rows per batch over all processes.
    seed: of the order, >= 0. Without shuffle it has no effect.
    shuffle: False keeps the order of the source.
    reject: takes the index of an example that cannot be used and the error,
      such as `filtering.RowFilter.reject`; the example is left out. None
      refuses the source.
    process_index, process_count: those of `jax`; each process has
      batch_size / process_count rows.

  Raises: ValueError for an empty source, an example that does not fit or that
    the template refuses, or a batch that the processes cannot divide.
  """
  if not len(source):
    raise ValueError('the source has no examples')
  if seed < 0:
    raise ValueError(f'seed must not be negative, got {seed}')
  if not 0 <= process_index < process_count:
    raise ValueError(f'no process {process_index} among {process_count}')
  if batch_size < 1 or batch_size % process_count:
    raise ValueError(
      f'batch_size must be a multiple of the {process_count} processes, '
      f'got {batch_size}'
    )
  options = (max_response_tokens, stop_id, template_kwargs, context)
  rows = _encode(source, tokenizer, *options, reject)
  shape = (max_prompt_tokens, max_response_tokens)
  rows = _fitting(rows, shape, reject)
  part = batch_size // process_count
  mine = slice(process_index * part, (process_index + 1) * part)
  return PromptIterator(
    _order(len(rows), batch_size, seed if shuffle else None),
    lambda order: _stack(
      [rows[i] for i in order[mine]], source, shape, context
    ),
    {
      'data': _digest(rows),
      'batch_size': batch_size,
      'seed': seed if shuffle else None,
    },
  )


class PromptIterator:
  """Yields `PromptBatch` without end; made by `make_iterator`.

  Its state is the number of batches taken and a fingerprint of the data. It is
  the same on every process, so that a run may resume on another number of them.
  """

  def __init__(self, order, make_batch, origin: dict):
    self._order = order
    self._make_batch = make_batch
    self._origin = origin

  def __iter__(self) -> 'PromptIterator':
    return self

  def __next__(self) -> PromptBatch:
    return self._make_batch(next(self._order))

  def get_state(self) -> dict:
    """A small state for `set_state`, plain JSON."""
    return {'order': self._order.get_state(), 'origin': dict(self._origin)}

  def set_state(self, state: dict) -> None:
    """Continues after the batch that `get_state` followed.

    Raises: ValueError when the state is of other data, another batch size or
      another seed.
    """
    origin = state['origin']
    if changed := [k for k, v in self._origin.items() if origin.get(k) != v]:
      raise ValueError(
        f'the saved iterator had another {" and ".join(changed)}: '
        f'saved {origin}, now {self._origin}; resume with the same data and '
        'settings, or start anew'
      )
    self._order.set_state(state['order'])


def encode_rollout_contexts(
  prompts_read: PromptBatch,
  responses: Sequence[Sequence[ScoredResponse]],
  context: Callable[..., list[dict] | None],
  *,
  tokenizer: 'transformers.PreTrainedTokenizerBase',
  max_teacher_prompt_tokens: int,
  template_kwargs: Mapping[str, object] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """The prompts of a teacher whose context reads the responses.

  A row keeps the student's prompt where the context returns None, or more
  tokens than fit.

  Args:
    prompts_read: b prompts, as the student reads them.
    responses: the G responses to each.
    context: a rollout context, see `data/contexts.py`.
    tokenizer, template_kwargs: as in `encode_batch`.
    max_teacher_prompt_tokens: P, the places of such a prompt.

  Returns:
    ids [b * G, P], lengths [b * G], and [b * G] bool: which rows have a context
    of their own.
  """
  rows, has_context = [], []
  for i, (example, group) in enumerate(
    zip(prompts_read.examples, responses, strict=True)
  ):
    plain = prompts_read.prompt[i, : prompts_read.prompt_length[i]]
    for j, response in enumerate(group):
      messages = context(example, response, [*group[:j], *group[j + 1 :]])
      ids = messages and prompts.encode_prompt(
        tokenizer, messages, template_kwargs=template_kwargs
      )
      has_context.append(bool(ids) and len(ids) <= max_teacher_prompt_tokens)
      rows.append(np.asarray(ids if has_context[-1] else plain, np.int32))
  return *pad(rows, max_teacher_prompt_tokens), np.array(has_context)


class _Row(NamedTuple):
  """One encoded example: its index in the source, its name, its tokens."""

  index: int
  id: str
  prompt: np.ndarray
  response: np.ndarray


def _encode(
  source,
  tokenizer,
  max_response_tokens,
  stop_id,
  template_kwargs,
  context,
  reject=None,
) -> list[_Row]:
  """Every example as tokens; errors name the example."""
  rows = []
  for index, example in enumerate(source):
    try:
      prompt = prompts.encode_prompt(
        tokenizer, context(example), template_kwargs=template_kwargs
      )
      response = []
      if max_response_tokens and example.response is not None:
        if stop_id is None:
          stop_id = prompts.turn_end(tokenizer, template_kwargs=template_kwargs)
        response = prompts.encode_response(
          tokenizer, example.response, stop_id=stop_id
        )
    except ValueError as error:
      if reject is None or (not rows and index == len(source) - 1):
        raise ValueError(f'example {example.id}: {error}') from error
      reject(index, error)
      continue
    tokens = (np.array(ids, np.int32) for ids in (prompt, response))
    rows.append(_Row(index, example.id, *tokens))
  return rows


def _fitting(rows: list[_Row], shape, reject=None) -> list[_Row]:
  """The rows within the shape; longer ones raise or are rejected."""
  fitting, long = [], []
  for row in rows:
    fits = row.prompt.size <= shape[0] and row.response.size <= shape[1]
    (fitting if fits else long).append(row)
  if not long:
    return fitting
  summary = (
    f'{len(long)} of {len(rows)} examples do not fit max_prompt_tokens='
    f'{shape[0]} and max_response_tokens={shape[1]}: example {long[0].id} has '
    f'{long[0].prompt.size} and {long[0].response.size}, the longest have '
    f'{max(row.prompt.size for row in rows)} and '
    f'{max(row.response.size for row in rows)}'
  )
  if reject is None or not fitting:
    raise ValueError(f'{summary}; raise the limits, or leave such examples out')
  for row in long:
    reject(
      row.index,
      Unfit(
        f'prompt and response have {row.prompt.size} and {row.response.size}'
        f' tokens, more than {shape[0]} and {shape[1]}'
      ),
    )
  _log.warning('%s; left out', summary)
  return fitting


def _stack(
  rows: list[_Row], source: Sequence[Example], shape, context
) -> PromptBatch:
  """Encoded examples as the arrays of one batch."""
  prompt, prompt_length = pad([row.prompt for row in rows], shape[0])
  response, response_length = pad([row.response for row in rows], shape[1])
  examples = [source[row.index] for row in rows]
  return PromptBatch(
    ids=[row.id for row in rows],
    prompt=prompt,
    prompt_length=prompt_length,
    response=response,
    response_length=response_length,
    examples=examples,
    messages=[context(example) for example in examples],
  )


def pad(rows: list[np.ndarray], places: int) -> tuple[np.ndarray, np.ndarray]:
  """Rows padded on the right to `places`, and their lengths."""
  padded = np.zeros((len(rows), places), np.int32)
  for out, row in zip(padded, rows, strict=True):
    out[: row.size] = row
  return padded, np.array([row.size for row in rows], np.int32)


def _order(count: int, batch_size: int, seed: int | None):
  """Grain's endless batches of row numbers, reshuffled in each epoch."""
  import grain

  numbers = grain.MapDataset.range(count)
  if seed is not None:
    numbers = numbers.seed(seed).shuffle()
  # Endless, so no remainder; without drop_remainder the length of batches of
  # one overflows (grain 0.2.18).
  batches = numbers.repeat().batch(batch_size, drop_remainder=True)
  # Row numbers cost nothing: no threads, and no state that runs ahead.
  options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
  return iter(batches.to_iter_dataset(options))


def _digest(rows: list[_Row]) -> str:
  """A short fingerprint of names, tokens and order."""
  digest = hashlib.sha256()
  for row in rows:
    sizes = f'{row.id}/{row.prompt.size}/{row.response.size}/'
    digest.update(sizes.encode() + row.prompt.tobytes())
    digest.update(row.response.tobytes())
  return digest.hexdigest()[:16]
