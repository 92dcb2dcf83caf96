"""The files of a model folder: read with suspicion, written whole or not.

Nothing is unpickled, no path leaves the folder, and every refusal names the
file.
"""

import contextlib
import json
import math
import os
import pathlib
import shutil
from typing import Any

import safetensors

WEIGHTS = 'model.safetensors'
INDEX = 'model.safetensors.index.json'

_LONGEST = 100_000_000  # bytes of a header, as in the library
_BYTES = {
  **dict.fromkeys(('BOOL', 'U8', 'I8', 'F8_E5M2', 'F8_E4M3', 'F8_E8M0'), 1),
  **dict.fromkeys(('U16', 'I16', 'F16', 'BF16'), 2),
  **dict.fromkeys(('U32', 'I32', 'F32'), 4),
  **dict.fromkeys(('U64', 'I64', 'F64', 'C64'), 8),
}


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """Returns the object in a JSON file."""
  check_regular(path)
  if not path.is_file():
    raise FileNotFoundError(
      f'{path} does not exist: expected a local folder with a Hugging Face '
      'model; download it first'
    )
  try:
    fields = json.loads(path.read_text(encoding='utf-8'))
  except (ValueError, RecursionError) as error:
    raise ValueError(f'{path} is not valid JSON: {error}') from None
  if not isinstance(fields, dict):
    raise ValueError(f'{path} must hold a JSON object; got {fields!r:.60}')
  return fields


def check_regular(path: pathlib.Path) -> None:
  """Raises ValueError for a pipe, a device or a socket: reading might hang."""
  if path.exists() and not (path.is_file() or path.is_dir()):
    raise ValueError(f'{path} is no ordinary file: refused; copy it again')


def open_tensors(
  folder: pathlib.Path, stack: contextlib.ExitStack
) -> dict[str, Any]:
  """Returns lazy slices of all tensors by name; the stack closes the files.

  Raises: FileNotFoundError for a file that is not there; ValueError for one
    that is cut short, not what the index says, or outside of the folder.
  """
  check_regular(folder / WEIGHTS)
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
  check_regular(path)
  if not path.is_file():
    raise FileNotFoundError(f'{path} does not exist: a shard is missing')
  try:
    _check_header(path)
    file = stack.enter_context(safetensors.safe_open(path, framework='numpy'))
    return {name: file.get_slice(name) for name in file.keys()}
  except (
    ValueError,
    RecursionError,
    safetensors.SafetensorError,
    OSError,
  ) as error:
    raise ValueError(
      f'{path} is not a whole safetensors file ({error}): copy it again'
    ) from None


def _check_header(path: pathlib.Path) -> None:
  """Raises ValueError unless the header describes each byte of the file once.

  The library checks much of this. It takes the last of two tensors of one name,
  and what it lets pass depends on its version.
  """
  with path.open('rb') as file:
    size = os.fstat(file.fileno()).st_size - 8
    length = int.from_bytes(file.read(8), 'little')
    if size < 0 or not 2 <= length <= min(size, _LONGEST):
      raise ValueError(f'its header of {length} bytes does not fit')
    text = file.read(length).decode('utf-8')
  header = json.loads(
    text, object_pairs_hook=_once, parse_constant=_refuse_constant
  )
  if not isinstance(header, dict):
    raise ValueError('its header is no JSON object')
  metadata = header.pop('__metadata__', {})
  if not isinstance(metadata, dict) or not all(
    isinstance(value, str) for value in metadata.values()
  ):
    raise ValueError('its __metadata__ is no table of texts')
  end = 0
  for start, stop, name in sorted(
    (*_place(name, tensor), name) for name, tensor in header.items()
  ):
    if start != end:
      raise ValueError(f'{name!r} begins at {start}, expected {end}')
    end = stop
  if end != size - length:
    raise ValueError(f'{size - length} bytes follow, its header tells of {end}')


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    raise ValueError('its header has a name twice')
  return found


def _refuse_constant(constant: str) -> None:
  raise ValueError(f'{constant} is not JSON')


def _place(name: str, tensor: Any) -> tuple[int, int]:
  """First byte and end of a tensor, whose size is that of its shape."""
  fields = {'dtype', 'shape', 'data_offsets'}
  if not isinstance(tensor, dict) or set(tensor) != fields:
    raise ValueError(f'{name!r} has not the fields {sorted(fields)}')
  dtype, shape, offsets = (
    tensor[field] for field in ('dtype', 'shape', 'data_offsets')
  )
  if not isinstance(dtype, str) or dtype not in _BYTES:
    raise ValueError(f'{name!r} has the unknown dtype {dtype!r:.40}')
  for numbers in (shape, offsets):
    if not isinstance(numbers, list) or not all(
      type(n) is int and 0 <= n < 2**63 for n in numbers
    ):
      raise ValueError(f'{name!r} has {numbers!r:.40} for sizes or offsets')
  if len(offsets) != 2 or math.prod(shape) * _BYTES[dtype] != (
    offsets[1] - offsets[0]
  ):
    raise ValueError(
      f'{name!r} of {dtype} {shape!r:.40} does not fill {offsets!r:.40}'
    )
  return offsets[0], offsets[1]


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
    sync(path)
  previous = folder.parent / f'.{folder.name}.previous'
  if folder.exists():
    shutil.rmtree(previous, ignore_errors=True)
    folder.rename(previous)
  partial.rename(folder)
  sync(folder.parent)
  shutil.rmtree(previous, ignore_errors=True)


def sync(path: pathlib.Path) -> None:
  """Returns when a file, or the names in a folder, are on the disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
