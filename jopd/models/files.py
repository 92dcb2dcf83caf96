"""The files of a model folder: read with suspicion, written whole or not.

Nothing is unpickled, no path leaves the folder, and every refusal names the
file.
"""

import contextlib
import json
import os
import pathlib
import shutil
from typing import Any

import safetensors

WEIGHTS = 'model.safetensors'
INDEX = 'model.safetensors.index.json'


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """Returns the object in a JSON file."""
  if not path.is_file():
    raise FileNotFoundError(
      f'{path} does not exist: expected a local folder with a Hugging Face '
      'model; download it first'
    )
  try:
    fields = json.loads(path.read_text(encoding='utf-8'))
  except ValueError as error:
    raise ValueError(f'{path} is not valid JSON: {error}') from None
  if not isinstance(fields, dict):
    raise ValueError(f'{path} must hold a JSON object; got {fields!r:.60}')
  return fields


def open_tensors(
  folder: pathlib.Path, stack: contextlib.ExitStack
) -> dict[str, Any]:
  """Returns lazy slices of all tensors by name; the stack closes the files.

  Raises: FileNotFoundError for a file that is not there; ValueError for one
    that is cut short, not what the index says, or outside of the folder.
  """
  if (folder / WEIGHTS).is_file():
    return _open_file(folder / WEIGHTS, stack)
  if not (folder / INDEX).is_file():
    raise FileNotFoundError(
      f'{folder} has neither {WEIGHTS} nor {INDEX}: convert other formats '
      'with transformers, save_pretrained writes safetensors'
    )
  index = read_json(folder / INDEX).get('weight_map')
  if not isinstance(index, dict) or not all(
    isinstance(name, str) for name in index.values()
  ):
    raise ValueError(
      f'{folder / INDEX} has no weight_map of file names: copy it again'
    )
  tensors = {}
  for name in sorted(set(index.values())):
    tensors |= _open_file(_inside(folder, name), stack)
  for name, file in index.items():
    if name not in tensors:
      raise ValueError(
        f'{folder / INDEX} promises {name} in {file}, which lacks it: the '
        'files are not of one checkpoint; copy them again'
      )
  return tensors


def _inside(folder: pathlib.Path, name: str) -> pathlib.Path:
  """The path of a shard, refused when it leaves the folder."""
  roots = [folder.resolve()]
  # The cache of the Hugging Face hub links snapshots/<revision>/<file> to
  # blobs/<hash> of the same repository.
  if roots[0].parent.name == 'snapshots':
    roots.append(roots[0].parent.parent / 'blobs')
  path = (folder / name).resolve()
  lexical = pathlib.PurePath(name)
  if (
    lexical.is_absolute()
    or '..' in lexical.parts
    or not any(path.is_relative_to(root) for root in roots)
  ):
    raise ValueError(
      f'{folder / INDEX} points to {name!r}, outside of its folder: refused; '
      'shards must lie beside the index'
    )
  return path


def _open_file(
  path: pathlib.Path, stack: contextlib.ExitStack
) -> dict[str, Any]:
  if not path.is_file():
    raise FileNotFoundError(f'{path} does not exist: a shard is missing')
  try:
    file = stack.enter_context(safetensors.safe_open(path, framework='numpy'))
  except (safetensors.SafetensorError, OSError) as error:
    raise ValueError(
      f'{path} is not a whole safetensors file ({error}): copy it again'
    ) from None
  return {name: file.get_slice(name) for name in file.keys()}


def check_replaceable(folder: pathlib.Path) -> None:
  """Raises ValueError when replacing the folder would destroy other things."""
  if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
    return
  if not (folder / 'config.json').is_file():
    raise ValueError(
      f'{folder} exists and is not a model folder: it would be replaced; '
      'choose a new one, or empty it'
    )


def write_json(path: pathlib.Path, fields: dict[str, Any]) -> None:
  """Writes an object as JSON."""
  path.write_text(json.dumps(fields, indent=2) + '\n', encoding='utf-8')


def publish(partial: pathlib.Path, folder: pathlib.Path) -> None:
  """Makes a finished folder durable, then gives it its name.

  A folder of that name is moved aside first and removed last, so that at
  every moment at least one of the two is whole.
  """
  for path in [*partial.rglob('*'), partial]:
    _sync(path)
  previous = folder.parent / f'.{folder.name}.previous'
  if folder.exists():
    shutil.rmtree(previous, ignore_errors=True)
    folder.rename(previous)
  partial.rename(folder)
  _sync(folder.parent)
  shutil.rmtree(previous, ignore_errors=True)


def _sync(path: pathlib.Path) -> None:
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
