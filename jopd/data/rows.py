"""Rows as examples, checked field by field."""

from collections.abc import Mapping, Sequence

from jopd.data.examples import Example, Lazy, Rejected


def make_example(
  row: object,
  id: str,
  *,
  prompt_field: str = 'prompt',
  answer_field: str = 'answer',
  response_field: str = 'response',
) -> Example:
  """A row as an `Example`; `sources.jsonl` documents what a row may hold.

  Args:
    row: column -> value.
    id: of an example whose row has no id.
    prompt_field, answer_field, response_field: names of columns.

  Raises: ValueError that says what is wrong with the row.
  """
  if not isinstance(row, Mapping):
    raise ValueError(f'expected a JSON object, got {type(row).__name__}')
  response = _text(row, response_field)
  if row.get('messages') is not None:
    messages = _turns(row['messages'])
    if messages[-1]['role'] == 'assistant':
      if response is not None:
        raise ValueError(f'a final assistant turn and also {response_field!r}')
      response = messages.pop()['content']
    if not messages or messages[-1]['role'] != 'user':
      raise ValueError("'messages' must have a user turn last to answer")
  else:
    prompt, system = _text(row, prompt_field), _text(row, 'system')
    if prompt is None:
      raise ValueError(f"no {prompt_field!r} and no 'messages'")
    messages = [{'role': 'user', 'content': prompt}]
    if system is not None:
      messages.insert(0, {'role': 'system', 'content': system})
  return Example(
    id=_label(row, 'id') or id,
    messages=messages,
    answer=_label(row, answer_field),
    response=response,
    columns=row,
  )


def make_examples(rows, name: str) -> Sequence[Example | Rejected]:
  """What a source returns, as a sequence of examples.

  Args:
    rows: of a source: `Example`, `Rejected` or mappings. Mappings are
      read by `make_example`, with the columns prompt, answer and response; a
      row that cannot be an example becomes `Rejected`. Anything with a length
      and an item per index is read row by row, when a row is needed; an
      iterator is read whole.
    name: of the source; ids of mappings default to '<name>/<index>'.
  """
  if not (hasattr(rows, '__len__') and hasattr(rows, '__getitem__')):
    rows = list(rows)

  def make(index: int) -> Example | Rejected:
    row = rows[index]
    if isinstance(row, Example | Rejected):
      return row
    try:
      return make_example(row, f'{name}/{index}')
    except ValueError as error:
      return Rejected(str(error), str(row))

  return Lazy(len(rows), make)


def _turns(turns: object) -> list[dict]:
  """Chat turns with exactly a role and a text, in a new list."""
  if not isinstance(turns, Sequence) or isinstance(turns, str) or not turns:
    raise ValueError("'messages' must be a list of turns, and not empty")
  for turn in turns:
    if not isinstance(turn, Mapping) or set(turn) != {'role', 'content'}:
      raise ValueError("a turn must be {'role': ..., 'content': ...}")
    if turn['role'] not in ('system', 'user', 'assistant'):
      raise ValueError(f'unknown role {turn["role"]!r}')
    if _text(turn, 'content') is None:
      raise ValueError(f'the {turn["role"]} turn has no content')
  return list(turns)


def _text(row: Mapping, field: str) -> str | None:
  """The text in a field, None when absent."""
  value = row.get(field)
  if value is None:
    return None
  if not isinstance(value, str):
    raise ValueError(f'{field!r} must be text, got {type(value).__name__}')
  if not value.strip():
    raise ValueError(f'{field!r} is empty')
  try:
    value.encode('utf-8')
  except UnicodeEncodeError:
    # JSON can spell half a surrogate pair, which no tokenizer accepts.
    raise ValueError(f'{field!r} holds a lone surrogate') from None
  return value


def _label(row: Mapping, field: str) -> str | None:
  """The text or number in a field, as text."""
  value = row.get(field)
  if isinstance(value, int | float) and not isinstance(value, bool):
    return str(value)
  return _text(row, field)
