"""The files of a model folder, and the layout of arrays in them.

Files are untrusted: nothing is unpickled, paths outside of the folder are
refused, and every error names the file.

Our arrays and the tensors of a file both name their axes, so one pair of
functions converts every weight: an array of ours is [layers, embed, heads,
head_dim] where a file has a tensor [heads * head_dim, embed] per layer.
"""

from collections.abc import Sequence
import contextlib
import json
import math
import os
import pathlib
import shutil
from typing import Any, NamedTuple

import numpy as np
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
  """Raises ValueError for a pipe, device or socket, whose reading may hang."""
  if path.exists() and not (path.is_file() or path.is_dir()):
    raise ValueError(f'{path} is not a regular file: copy it again')


def open_tensors(
  folder: pathlib.Path, stack: contextlib.ExitStack
) -> dict[str, Any]:
  """Returns lazy slices of all tensors by name; the stack closes the files.

  Raises: FileNotFoundError for a missing file; ValueError for one that is
    truncated, does not match the index, or is outside of the folder.
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
        f'{folder / INDEX} lists {name} in {file}, which does not have it: '
        'index and shards do not match; copy them again'
      )
  return tensors


def _inside(folder: pathlib.Path, name: str) -> pathlib.Path:
  """The path of a shard, checked to be inside of the folder."""
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
      f'{folder / INDEX} refers to {name!r}, outside of its folder: '
      'shards must be in the same folder'
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
      f'{path} is not a valid safetensors file ({error}): copy it again'
    ) from None


def _check_header(path: pathlib.Path) -> None:
  """Raises ValueError unless the header describes each byte of the file once.

  safetensors checks part of this, depending on its version.
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
    raise ValueError('its header is not a JSON object')
  metadata = header.pop('__metadata__', {})
  if not isinstance(metadata, dict) or not all(
    isinstance(value, str) for value in metadata.values()
  ):
    raise ValueError('its __metadata__ is not an object of strings')
  end = 0
  for start, stop, name in sorted(
    (*_place(name, tensor), name) for name, tensor in header.items()
  ):
    if start != end:
      raise ValueError(f'{name!r} begins at {start}, expected {end}')
    end = stop
  if end != size - length:
    raise ValueError(
      f'its header describes {end} bytes, the file has {size - length}'
    )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  fields = dict(pairs)
  if len(fields) < len(pairs):
    raise ValueError('its header has a name twice')
  return fields


def _refuse_constant(constant: str) -> None:
  raise ValueError(f'{constant} is not JSON')


def _place(name: str, tensor: Any) -> tuple[int, int]:
  """Checked start and end offsets of a tensor."""
  fields = {'dtype', 'shape', 'data_offsets'}
  if not isinstance(tensor, dict) or set(tensor) != fields:
    raise ValueError(f'{name!r} does not have the fields {sorted(fields)}')
  dtype, shape, offsets = (
    tensor[field] for field in ('dtype', 'shape', 'data_offsets')
  )
  if not isinstance(dtype, str) or dtype not in _BYTES:
    raise ValueError(f'{name!r} has the unknown dtype {dtype!r:.40}')
  for numbers in (shape, offsets):
    if not isinstance(numbers, list) or not all(
      type(n) is int and 0 <= n < 2**63 for n in numbers
    ):
      raise ValueError(f'{name!r} has invalid sizes or offsets {numbers!r:.40}')
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
      f'{folder} exists and is not a model folder: choose another folder, or '
      'empty it'
    )


def write_json(path: pathlib.Path, fields: dict[str, Any]) -> None:
  """Writes an object as JSON."""
  path.write_text(json.dumps(fields, indent=2) + '\n', encoding='utf-8')


def publish(partial: pathlib.Path, folder: pathlib.Path) -> None:
  """Syncs a complete folder to disk, then renames it.

  An older folder of that name is renamed first and removed last, so that one of
  the two is complete at any time.
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
  """Writes a file, or the names in a folder, through to the disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


Axis = str | None

_COUNTED = ('layer', 'expert')


class Stored(NamedTuple):
  """How a file stores one of our arrays.

  Attributes:
    name: of the tensor. With `{layer}` there is a tensor per layer, and the
      array has a leading axis 'layers'; `{expert}` and 'experts' likewise.
    dims: for each dimension of the tensor the axes that are flattened into it,
      row-major. For q_proj these are (('heads', 'head_dim'), ('embed',)).
  """

  name: str
  dims: tuple[tuple[Axis, ...], ...]


class Leaf(NamedTuple):
  """One of our arrays and the tensors that store it."""

  stored: Stored
  axes: tuple[Axis, ...]
  shape: tuple[int, ...]

  @property
  def stacked(self) -> int:
    """Number of leading axes that the tensors do not have."""
    return len(self.axes) - sum(len(dim) for dim in self.stored.dims)

  @property
  def names(self) -> dict[tuple[int, ...], str]:
    """Names of the tensors by index along the stacked axes, in order."""
    places = np.ndindex(self.shape[: self.stacked])
    return {at: self.name(at) for at in places}

  def name(self, at: tuple[int, ...]) -> str:
    """Name of the tensor at an index along the stacked axes."""
    return self.stored.name.format(**dict(zip(_COUNTED, at, strict=False)))

  @property
  def tensor_shape(self) -> tuple[int, ...]:
    """Shape of each of the tensors."""
    size = dict(zip(self.axes, self.shape, strict=True))
    return tuple(math.prod(size[a] for a in dim) for dim in self.stored.dims)


def _order(dims: Sequence[Sequence[Axis]], axes: Sequence[Axis]) -> list[int]:
  """The index among our axes of each flattened axis of the tensor."""
  return [axes.index(axis) for dim in dims for axis in dim]


def read_part(
  tensor, dims: Sequence[Sequence[Axis]], axes, shape, index
) -> np.ndarray:
  """Returns `ours[index]`, reading only the rows and columns of it.

  Args:
    tensor: array or lazy slice of a file; it is only sliced.
    dims: as in `Stored`.
    axes: names of our axes, without 'layers'.
    shape: sizes of `axes`.
    index: one slice with step 1 per axis of ours.
  """
  order = _order(dims, axes)
  size, wanted = [shape[i] for i in order], [index[i] for i in order]
  rows, unfold, within, at = [], [], [], 0
  for dim in dims:
    # The leading axis of a product is a run of rows, the others are not.
    inner = slice(at + 1, at + len(dim))
    stride = math.prod(size[inner])
    start, stop, _ = wanted[at].indices(size[at])
    rows.append(slice(start * stride, stop * stride))
    unfold += [stop - start, *size[inner]]
    within += [slice(None), *wanted[inner]]
    at += len(dim)
  part = tensor[tuple(rows)].reshape(unfold)[tuple(within)]
  return part.transpose(np.argsort(order))


def to_tensor(
  array: np.ndarray, dims: Sequence[Sequence[Axis]], axes
) -> np.ndarray:
  """Returns the tensor that stores `array`; the inverse of `read_part`."""
  size = dict(zip(axes, array.shape, strict=True))
  shape = [math.prod(size[axis] for axis in dim) for dim in dims]
  tensor = array.transpose(_order(dims, axes)).reshape(shape)
  return np.ascontiguousarray(tensor)
