"""Sources that read files: JSON Lines, prepared TFDS folders."""

import json
import logging
from pathlib import Path

import numpy as np

from jopd.data import rows
from jopd.data.examples import Example, Lazy

_log = logging.getLogger(__name__)


def jsonl(
  path: str | Path,
  *,
  prompt_field: str = 'prompt',
  answer_field: str = 'answer',
  response_field: str = 'response',
  quarantine: str | Path | None = None,
  max_bad_share: float = 0.01,
) -> list[Example]:
  r"""The examples of a JSON Lines file, in file order.

  A row has either `messages` (a list of {role, content}; a final assistant
  turn becomes the response; `prompt` and `system` are then not read) or a
  prompt with an optional `system`. Answer, response and `id` are optional; an
  answer or id may be a number. Null counts as absent, blank lines are skipped.

  A bad row (not UTF-8, not a JSON object, a field missing, empty or of a wrong
  type, an id seen before) is left out, counted and quarantined; too many stop
  the run here, before anything is loaded.

  Args:
    path: the file, UTF-8.
    prompt_field, answer_field, response_field: names of the fields, e.g.
      prompt_field='question'.
    quarantine: file for the bad rows, one JSON object {row, reason, line} per
      line, rows counted from 1; written anew even if none is bad. None: they
      are only logged.
    max_bad_share: largest share of bad rows, of all that are not blank.

  Returns:
    The good examples; ids default to '<file name>:<row>'.

  Raises: ValueError when the file is missing, has no good row or has too many
    bad ones, naming the first of them.
  """
  path = Path(path)
  if not path.is_file():
    raise ValueError(f'{path}: no such file; expected JSON Lines')
  if quarantine is not None and Path(quarantine).absolute() == path.absolute():
    raise ValueError(f'{path}: quarantine must be another file than the data')
  good: dict[str, Example] = {}
  bad: list[dict] = []
  with path.open('rb') as lines:
    for row, line in enumerate(lines, 1):
      if not line.strip():
        continue
      try:
        example = rows.parse(
          line,
          f'{path.name}:{row}',
          (prompt_field, answer_field, response_field),
        )
        if example.id in good:
          raise ValueError(f'id {example.id!r} was seen before')
        good[example.id] = example
      except (ValueError, RecursionError) as error:
        text = line.decode('utf-8', 'backslashreplace').rstrip('\r\n')
        bad.append({'row': row, 'reason': str(error), 'line': text})
  if quarantine is not None:
    Path(quarantine).parent.mkdir(parents=True, exist_ok=True)
    text = ''.join(json.dumps(row) + '\n' for row in bad)
    Path(quarantine).write_text(text, encoding='utf-8')
  _judge(path, good=len(good), bad=bad, max_bad_share=max_bad_share)
  return list(good.values())


def _judge(
  path: Path, *, good: int, bad: list[dict], max_bad_share: float
) -> None:
  """Logs the bad rows of a file, or raises when they are too many."""
  if not good and not bad:
    raise ValueError(f'{path}: the file has no rows')
  if not bad:
    return
  share = len(bad) / (good + len(bad))
  first = '; '.join(f'row {row["row"]}: {row["reason"]}' for row in bad[:3])
  found = f'{path}: {len(bad)} of {good + len(bad)} rows are bad ({share:.1%})'
  if not good or share > max_bad_share:
    raise ValueError(
      f'{found}, more than max_bad_share={max_bad_share:.1%}: {first}; '
      'repair them, or name other fields'
    )
  _log.warning('%s and left out: %s', found, first)


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
    A lazy sequence; ids are '<name>/<split>/<index>'.

  Raises: ValueError when the dataset is not prepared, is in another format or
    lacks a field; and on access, when a row has an empty or undecodable field.
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
  except ValueError as error:  # not found, or not even a name
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

  def make(index: int) -> Example:
    name = f'{builder.name}/{split}/{index}'
    row = table[index]
    try:
      texts = {key: _decoded(row, field) for key, field in fields.items()}
    except ValueError as error:
      raise ValueError(f'{name}: {error}') from None
    prompt = texts.pop('prompt')
    return Example(name, [{'role': 'user', 'content': prompt}], **texts)

  return Lazy(len(table), make)


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
