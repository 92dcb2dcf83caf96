"""Reads and writes model folders in Hugging Face's format, without torch.

`load` reads the part of each device from the memory-mapped file, so the host
holds one such part at a time. `save` writes folders that transformers and
inference engines load. Nothing is unpickled and no code from a folder runs.
"""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import itertools
import math
import os
import pathlib
import shutil
from typing import Any

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from jopd.models import families, files
from jopd.models.api import Model, Params
from jopd.models.decoder import DecoderConfig, make_model
from jopd.models.files import Leaf, read_part, to_tensor

_EMBED, _HEAD = 'model.embed_tokens.weight', 'lm_head.weight'
_FLOATS = {'F32': 'float32', 'F16': 'float16', 'BF16': 'bfloat16'}

PathLike = str | os.PathLike[str]


def load(
  folder: PathLike,
  *,
  shardings: Callable[[Any, Any], Any] | None = None,
  dtype: Any = None,
  **options,
) -> tuple[Model, Params]:
  """Returns the model of a folder and its parameters, on their devices.

  Args:
    folder: holds `config.json` and `model.safetensors`, or its index and
      shards. A local path; nothing is downloaded.
    shardings: `(axes, shapes) -> pytree of Sharding`, for instance
      `functools.partial(sharding.param_shardings, mesh)`. None puts all on
      the default device.
    dtype: of the parameters. None keeps that of the files.
    options: of `make_model`: remat, constrain, kernels.

  Returns:
    `(model, params)`.

  Raises: FileNotFoundError when a file is not there; ValueError when the
    architecture, a field, a tensor or a file is not what was expected, with
    its name. With tied embeddings a copy of the embedding under
    `lm_head.weight` is accepted; one that differs is refused.
  """
  folder = pathlib.Path(folder)
  config = read_config(folder)
  model = make_model(config, **options)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  with contextlib.ExitStack() as stack:
    tensors = files.open_tensors(folder, stack)
    leaves = _leaves(model, shapes)
    _check_tensors(folder, config, leaves, tensors)
    if config.tied and _HEAD in tensors:
      _check_tied(folder, tensors)
    dtype = _float(dtype or _stored_dtype(folder, tensors))
    if shardings is None:
      device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
      targets = jax.tree.map(lambda _: device, shapes)
    else:
      targets = shardings(model.axes, shapes)
    arrays = [
      _place(leaf, tensors, target, dtype)
      for leaf, target in zip(leaves, jax.tree.leaves(targets), strict=True)
    ]
  return model, jax.tree.unflatten(jax.tree.structure(shapes), arrays)


def check(folder: PathLike, model: Model) -> None:
  """Raises the errors of `load` that the headers of the files show."""
  folder = pathlib.Path(folder)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  with contextlib.ExitStack() as stack:
    tensors = files.open_tensors(folder, stack)
    _check_tensors(folder, model.config, _leaves(model, shapes), tensors)


def fresh(fields: Mapping[str, Any], **options) -> Model:
  """Returns a model of given sizes, whose `init` makes random parameters.

  Args:
    fields: as in `config.json`: `model_type`, `vocab_size`, `hidden_size`,
      `num_hidden_layers`, `num_attention_heads`, `num_key_value_heads`,
      `intermediate_size`, and whatever should not be the default.
    options: of `make_model`: remat, constrain, kernels.

  Raises: ValueError naming the field at fault.
  """
  config = families.from_hf(fields)
  return make_model(config, **options)


def save(
  folder: PathLike,
  model: Model,
  params: Params,
  *,
  tokenizer: Any = None,
  stop_ids: Sequence[int] = (),
  max_shard_bytes: int = 5 * 2**30,
  dtype: Any = None,
) -> None:
  """Writes a folder that `load`, transformers and inference engines read.

  The folder appears complete or not at all: files are written and synced in a
  hidden folder, which is then renamed. When it replaces a folder, a crash
  between two renames can leave the old one as `.<name>.previous`. With several
  processes all must call; the first one writes.

  Args:
    folder: is created or replaced. An existing one must be empty or hold a
      model.
    model: from `make_model` or `load`.
    params: of that model, with any shardings.
    tokenizer: from `load_tokenizer`; written along, and its end of sequence
      goes to the configs.
    stop_ids: further ids that end generation, for instance `stop_ids` of the
      original folder.
    max_shard_bytes: approximate size of one file, and of the host memory in
      use. A tensor is never split.
    dtype: stored dtype; None keeps that of the params.

  Raises: ValueError when the params do not fit the model, the architecture
    has no Hugging Face name, or `folder` holds something else.
  """
  folder = pathlib.Path(os.path.abspath(folder))
  fields = families.to_hf(model.config)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  _check_params(shapes, params)
  files.check_replaceable(folder)
  dtype = _float(dtype or jax.tree.leaves(params)[0].dtype)
  fields |= {'dtype': dtype.name}
  if tokenizer is not None:
    stop_ids = sorted({*stop_ids, *_ids(tokenizer.eos_token_id)})
    fields |= {
      'bos_token_id': tokenizer.bos_token_id,
      'eos_token_id': tokenizer.eos_token_id,
      'pad_token_id': tokenizer.pad_token_id,
    }

  writes = jax.process_index() == 0
  partial = folder.parent / f'.{folder.name}.partial'
  if writes:
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    files.write_json(partial / 'config.json', fields)
    if tokenizer is not None:
      tokenizer.save_pretrained(partial)
    if stop_ids:
      generation = {'eos_token_id': list(stop_ids)}
      files.write_json(partial / 'generation_config.json', generation)
  leaves = _leaves(model, shapes)
  _write_tensors(partial, leaves, params, dtype, max_shard_bytes, writes)
  if writes:
    files.publish(partial, folder)
  multihost_utils.sync_global_devices(f'saved {folder}')


def read_config(folder: PathLike) -> DecoderConfig:
  """Returns the architecture of a folder; reads `config.json` only.

  Raises: FileNotFoundError, or ValueError naming the field at fault.
  """
  path = pathlib.Path(folder) / 'config.json'
  fields = files.read_json(path)
  try:
    return families.from_hf(fields)
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from None


def load_tokenizer(folder: PathLike) -> Any:
  """Returns transformers' tokenizer of a folder; no code in it is run.

  Raises: FileNotFoundError when the folder has no tokenizer, where transformers
    would return an empty one; ValueError when it is damaged.
  """
  folder = pathlib.Path(folder)
  for path in sorted(folder.glob('*')):
    files.check_regular(path)
  kinds = ('tokenizer.json', 'vocab.json', 'tokenizer.model')
  if not any((folder / name).is_file() for name in kinds):
    raise FileNotFoundError(
      f'{folder} has no tokenizer: expected one of {", ".join(kinds)}; copy '
      'the tokenizer files of the original model there'
    )
  # A late import, since it takes 1.5 s.
  from transformers import AutoTokenizer

  try:
    return AutoTokenizer.from_pretrained(
      str(folder), trust_remote_code=False, local_files_only=True
    )
  except BaseException as error:
    if isinstance(error, KeyboardInterrupt | SystemExit):
      raise
    # Readers in Rust raise errors that are not an Exception.
    text = ' '.join(str(error).split())
    raise ValueError(
      f'the tokenizer in {folder} cannot be read ({text:.300}): copy it again'
    ) from error


def stop_ids(folder: PathLike, tokenizer: Any) -> tuple[int, ...]:
  """Returns the sorted ids that end a response.

  The union of `eos_token_id` in `generation_config.json` (a number or a list),
  in `config.json`, and in the tokenizer: chat models often have two
  such tokens in different files.

  Raises: ValueError when there is none at all.
  """
  folder = pathlib.Path(folder)
  ids = set(_ids(tokenizer.eos_token_id))
  for name in ('generation_config.json', 'config.json'):
    if (folder / name).is_file():
      value = files.read_json(folder / name).get('eos_token_id')
      try:
        ids |= set(_ids(value))
      except ValueError as error:
        raise ValueError(f'{folder / name}: {error}') from None
  if not ids:
    raise ValueError(
      f'{folder} has no eos_token_id in generation_config.json, config.json or '
      'its tokenizer: add one, or responses never stop'
    )
  return tuple(sorted(ids))


def _ids(value: Any) -> list[int]:
  """The ids in a field that holds none, one or several."""
  ids = value if isinstance(value, list) else [value]
  ids = [] if value is None else ids
  if not all(type(id) is int and id >= 0 for id in ids):
    raise ValueError(f'eos_token_id must be a token id or several: {value!r}')
  return ids


def _float(dtype: Any) -> np.dtype:
  dtype = jnp.dtype(dtype)
  if dtype.name not in _FLOATS.values():
    raise ValueError(
      f'parameters cannot be {dtype.name}: use one of '
      f'{", ".join(_FLOATS.values())}'
    )
  return dtype


def _leaves(model: Model, shapes: Any) -> list[Leaf]:
  """The arrays of a model with their tensors, in the order of tree.leaves."""
  axes = jax.tree.leaves(model.axes, is_leaf=lambda leaf: type(leaf) is tuple)
  leaves = []
  for names, (path, shape) in zip(
    axes, jax.tree.leaves_with_path(shapes), strict=True
  ):
    path = jax.tree_util.keystr(path, simple=True, separator='/')
    leaves.append(Leaf(families.stored(model.config, path), names, shape.shape))
  return leaves


# Reading.


def _check_tensors(folder, config, leaves: list[Leaf], tensors) -> None:
  """Raises ValueError unless the tensors are exactly those of the model."""
  expected = {
    name: leaf.tensor_shape for leaf in leaves for name in leaf.names.values()
  }
  unused = sorted(tensors.keys() - expected.keys())
  if config.tied and {_HEAD, _EMBED} <= tensors.keys():
    unused.remove(_HEAD)
  missing = sorted(expected.keys() - tensors.keys())
  for names, fault, verb in (
    (missing, 'lacks tensors that', 'requires'),
    (unused, 'has tensors that', 'does not use'),
  ):
    if names:
      more = f' and {len(names) - 3} more' if len(names) > 3 else ''
      raise ValueError(
        f'{folder} {fault} config.json '
        f'{verb}: {", ".join(names[:3])}{more}; weights and config.json do not '
        'match'
      )
  for name, shape in expected.items():
    stored = tuple(tensors[name].get_shape())
    if stored != shape:
      raise ValueError(
        f'{folder}: {name} has shape {stored}, config.json requires {shape}'
      )


def _check_tied(folder: pathlib.Path, tensors) -> None:
  """Raises ValueError unless the stored head repeats the embedding."""
  head, embed = tensors[_HEAD], tensors[_EMBED]
  same = head.get_shape() == embed.get_shape()
  if same:
    rows, step = head.get_shape()[0], 4096  # neither table is held whole
    spans = [slice(i, min(i + step, rows)) for i in range(0, rows, step)]
    same = all(np.array_equal(head[span], embed[span]) for span in spans)
  if not same:
    raise ValueError(
      f'{folder} stores a {_HEAD} that differs from {_EMBED}, but config.json '
      'has tie_word_embeddings = true: set it to false to use the stored head'
    )


def _stored_dtype(folder: pathlib.Path, tensors) -> str:
  """The dtype that all tensors share."""
  dtypes = sorted({tensor.get_dtype() for tensor in tensors.values()})
  if len(dtypes) > 1 or dtypes[0] not in _FLOATS:
    raise ValueError(
      f'{folder} stores dtypes {", ".join(dtypes)}: expected one of '
      f'{", ".join(_FLOATS)} for all tensors; pass dtype= to convert'
    )
  return _FLOATS[dtypes[0]]


def _place(leaf: Leaf, tensors, sharding, dtype) -> jax.Array:
  """Assembles one array device by device, from one part of it at a time."""
  parts = []
  devices = sharding.addressable_devices_indices_map(leaf.shape)
  for device, index in devices.items():
    # In one expression, so that the host array is freed before the next.
    part = jax.device_put(_read(leaf, tensors, index, dtype), device)
    parts.append(part.block_until_ready())
  return jax.make_array_from_single_device_arrays(leaf.shape, sharding, parts)


def _read(leaf: Leaf, tensors, index, dtype) -> np.ndarray:
  """The part of an array at `index`, a slice per axis."""
  n = leaf.stacked
  sizes = zip(index[:n], leaf.shape[:n], strict=True)
  places = [range(*part.indices(size)) for part, size in sizes]
  where = itertools.product(*places)
  axes, shape, inside = leaf.axes[n:], leaf.shape[n:], index[n:]
  read = lambda at: read_part(
    tensors[leaf.name(at)], leaf.stored.dims, axes, shape, inside
  )
  first = read(next(where))
  # Filled in place: stacking a list would hold the part twice.
  part = np.empty((math.prod(map(len, places)), *first.shape), dtype)
  part[0] = first
  for i, at in enumerate(where, start=1):
    part[i] = read(at)
  return part.reshape(*map(len, places), *first.shape)


# Writing.


def _check_params(shapes, params) -> None:
  expected, given = jax.tree.structure(shapes), jax.tree.structure(params)
  if expected != given:
    raise ValueError(f'expected params of structure {expected}; got {given}')
  for (path, want), got in zip(
    jax.tree.leaves_with_path(shapes), jax.tree.leaves(params), strict=True
  ):
    if want.shape != got.shape:
      name = jax.tree_util.keystr(path, simple=True, separator='/')
      raise ValueError(
        f'params {name} has shape {got.shape}, the model requires {want.shape}'
      )


def _write_tensors(
  folder: pathlib.Path,
  leaves: list[Leaf],
  params: Params,
  dtype: np.dtype,
  max_shard_bytes: int,
  writes: bool,
) -> None:
  """Writes the weights file by file; the host holds the tensors of one file."""
  shards, room = [], 0
  for leaf, array in zip(leaves, jax.tree.leaves(params), strict=True):
    size = math.prod(leaf.tensor_shape) * dtype.itemsize
    for at, name in leaf.names.items():
      if size > room:
        shards.append([])
        room = max_shard_bytes
      room -= size
      shards[-1].append((name, leaf, array, at))
  index = {}
  for number, shard in enumerate(shards, start=1):
    file = f'model-{number:05d}-of-{len(shards):05d}.safetensors'
    file = files.WEIGHTS if len(shards) == 1 else file
    tensors = {}
    for name, leaf, array, at in shard:
      # All processes take part in the gather; one keeps the result.
      tensor = _fetch(leaf, array, at)
      if writes:
        tensors[name] = tensor.astype(dtype)
    index |= {name: file for name, *_ in shard}
    if writes:
      safetensors.numpy.save_file(
        tensors, folder / file, metadata={'format': 'pt'}
      )
  if len(shards) > 1 and writes:
    total = sum(math.prod(leaf.shape) for leaf in leaves) * dtype.itemsize
    fields = {'metadata': {'total_size': total}, 'weight_map': index}
    files.write_json(folder / files.INDEX, fields)


def _fetch(leaf: Leaf, array: jax.Array, at: tuple[int, ...]) -> np.ndarray:
  """One tensor in the layout of the file, on every host."""
  array, axes = array[at] if at else array, leaf.axes[leaf.stacked :]
  if not array.is_fully_addressable:
    array = multihost_utils.process_allgather(array, tiled=True)
  return to_tensor(np.asarray(array), leaf.stored.dims, axes)
