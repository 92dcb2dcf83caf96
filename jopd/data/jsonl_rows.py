"""One line of a JSON Lines file, checked field by field."""

import json

from jopd.data.examples import Example


def parse(line: bytes, name: str, fields: tuple[str, str, str]) -> Example:
  """One line as an `Example`; `sources.jsonl` documents what a row may hold.

  Args:
    line: the bytes of one line.
    name: the id of an example that brings none.
    fields: names of the prompt, answer and response fields.

  Raises: ValueError that says what is wrong with the row.
  """
  prompt_field, answer_field, response_field = fields
  try:
    row = json.loads(line.decode('utf-8-sig'), parse_constant=_refuse)
  except UnicodeDecodeError as error:
    raise ValueError(f'not UTF-8 at byte {error.start}') from None
  except json.JSONDecodeError as error:
    raise ValueError(f'not JSON: {error.msg}, column {error.colno}') from None
  if not isinstance(row, dict):
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
    id=_label(row, 'id') or name,
    messages=messages,
    answer=_label(row, answer_field),
    response=response,
    columns=row,
  )


def _refuse(constant: str) -> None:
  raise ValueError(f'{constant} is not JSON')


def _turns(turns: object) -> list[dict]:
  """Chat turns with exactly a role and a text."""
  if not isinstance(turns, list) or not turns:
    raise ValueError("'messages' must be a list of turns, and not empty")
  for turn in turns:
    if not isinstance(turn, dict) or set(turn) != {'role', 'content'}:
      raise ValueError("a turn must be {'role': ..., 'content': ...}")
    if turn['role'] not in ('system', 'user', 'assistant'):
      raise ValueError(f'unknown role {turn["role"]!r}')
    if _text(turn, 'content') is None:
      raise ValueError(f'the {turn["role"]} turn has no content')
  return turns


def _text(row: dict, field: str) -> str | None:
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


def _label(row: dict, field: str) -> str | None:
  """The text or number in a field, as text."""
  value = row.get(field)
  if isinstance(value, int | float) and not isinstance(value, bool):
    return str(value)
  return _text(row, field)
