"""Sources that read files: JSON Lines, prepared TFDS folders."""

import json
from pathlib import Path

import numpy as np

from jopd.data.examples import Example, Lazy, Rejected
from jopd.data.rows import make_example


def jsonl(
  path: str | Path,
  *,
  prompt_field: str = 'prompt',
  answer_field: str = 'answer',
  response_field: str = 'response',
) -> list[Example | Rejected]:
  r"""The rows of a JSON Lines file, in file order.

  A row has either `messages` (a list of {role, content}; a final assistant
  turn becomes the response; `prompt` and `system` are then not read) or a
  prompt with an optional `system`. Answer, response and `id` are optional; an
  answer or id may be a number. Null counts as absent, blank lines are skipped.

  A row that is not UTF-8 or not a JSON object, or whose field is missing,
  empty or of a wrong type, is `Rejected`; see data/filtering.py.

  Args:
    path: the file, UTF-8.
    prompt_field, answer_field, response_field: names of the fields, e.g.
      prompt_field='question'.

  Returns:
    Examples and rejected rows; ids default to '<file name>:<row>'.

  Raises: ValueError when the file is missing or has no rows.
  """
  path = Path(path)
  if not path.is_file():
    raise ValueError(f'{path}: no such file; expected JSON Lines')
  fields = dict(
    prompt_field=prompt_field,
    answer_field=answer_field,
    response_field=response_field,
  )
  rows = []
  with path.open('rb') as lines:
    for row, line in enumerate(lines, 1):
      if not line.strip():
        continue
      try:
        example = make_example(_parse(line), f'{path.name}:{row}', **fields)
        rows.append(example._replace(row=row))
      except (ValueError, RecursionError) as error:
        text = line.decode('utf-8', 'backslashreplace').rstrip('\r\n')
        rows.append(Rejected(str(error), text, row))
  if not rows:
    raise ValueError(f'{path}: the file has no rows')
  return rows


def _parse(line: bytes) -> object:
  """A line as JSON. Raises: ValueError with the place of what is wrong."""

  def refuse(constant: str) -> None:
    raise ValueError(f'{constant} is not JSON')

  try:
    return json.loads(line.decode('utf-8-sig'), parse_constant=refuse)
  except UnicodeDecodeError as error:
    raise ValueError(f'not UTF-8 at byte {error.start}') from None
  except json.JSONDecodeError as error:
    raise ValueError(f'not JSON: {error.msg}, column {error.colno}') from None


def tfds(
  name_or_dir: str | Path,
  *,
  split: str,
  prompt_field: str,
  answer_field: str | None = None,
  response_field: str | None = None,
  data_dir: str | Path | None = None,
) -> Lazy:
  """The examples of a prepared TensorFlow Datasets split, read in place.

  Needs neither TensorFlow nor the dataset's own code, and never downloads: the
  dataset must have been prepared with file_format='array_record'.

  Args:
    name_or_dir: a folder that holds dataset_info.json, or a dataset name
      ('name', 'name/config', 'name:1.0.0') to find under data_dir.
    split: e.g. 'train', 'test', 'train[:90%]'.
    prompt_field, answer_field, response_field: features with text or numbers;
      None when there is none.
    data_dir: where prepared datasets lie; None is the library's default.

  Returns:
    A lazy sequence; ids are '<name>/<split>/<index>'. A row with an empty or
    undecodable field is `Rejected`.

  Raises: ValueError when the dataset is not prepared, is in another format or
    lacks a field.
  """
  from tensorflow_datasets.core import read_only_builder

  unprepared = (
    f'{str(name_or_dir)!r} is not a TFDS dataset prepared as array_record '
    f'(data_dir={data_dir}); prepare it once with tfds.builder(name, '
    "file_format='array_record').download_and_prepare()"
  )
  try:
    if (Path(name_or_dir) / 'dataset_info.json').is_file():
      builder = read_only_builder.builder_from_directory(name_or_dir)
    else:
      builder = read_only_builder.builder_from_files(
        str(name_or_dir), data_dir=data_dir
      )
  except ValueError as error:  # missing, or not a name
    raise ValueError(unprepared) from error
  try:
    table = builder.as_data_source(split=split)
  except NotImplementedError as error:  # a format without random access
    raise ValueError(unprepared) from error
  fields = {'answer': answer_field, 'response': response_field}
  fields = {'prompt': prompt_field} | {k: v for k, v in fields.items() if v}
  missing = sorted(set(fields.values()) - set(builder.info.features))
  if missing:
    raise ValueError(
      f'{builder.info.full_name} has no field {", ".join(missing)}; '
      f'it has {", ".join(sorted(builder.info.features))}'
    )

  def make(index: int) -> Example | Rejected:
    name = f'{builder.name}/{split}/{index}'
    row = table[index]
    try:
      texts = {key: _decoded(row, field) for key, field in fields.items()}
    except ValueError as error:
      return Rejected(f'{name}: {error}', str(row))
    prompt = texts.pop('prompt')
    messages = [{'role': 'user', 'content': prompt}]
    columns = {field: _plain(value) for field, value in row.items()}
    return Example(name, messages, **texts, columns=columns)

  return Lazy(len(table), make)


def _plain(value):
  """A feature as TFDS holds it, with text decoded where it is text."""
  if isinstance(value, bytes):
    try:
      return value.decode('utf-8')
    except UnicodeDecodeError:
      pass
  return value


def _decoded(row: dict, field: str) -> str:
  """The text of a feature, which TFDS holds as bytes or a NumPy scalar."""
  value = row[field]
  if isinstance(value, bytes):
    text = value.decode('utf-8')
  elif isinstance(value, str | int | float | np.number):
    text = str(value)
  else:
    raise ValueError(f'{field!r} must be text, got {type(value).__name__}')
  if not text.strip():
    raise ValueError(f'{field!r} is empty')
  return text
