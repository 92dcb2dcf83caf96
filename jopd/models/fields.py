"""The description of a family, and readers of the fields of `config.json`.

A field that could change the forward pass and is not implemented is refused by
name.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any, NamedTuple

from jopd.models.architecture import DecoderConfig
from jopd.models.files import Stored
from jopd.models.rope import SCALINGS, Scaling

Fields = Mapping[str, Any]


class Family(NamedTuple):
  """The files of one `model_type`.

  Attributes:
    architecture: the class of transformers, as 'architectures' names it.
    tensors: where the array of a path, like 'layers/mlp/up', is stored.
    read: (fields) -> the arguments of `DecoderConfig` that are specific to the
      family.
    write: the inverse of `read`.
    fields: names of the fields that `read` uses.
    fixed: fields that change the result, with the one value implemented.
    ignored: fields that do not affect the forward pass of this family.
    defaults: values of transformers for absent fields.
    mlp: the field with the hidden width of the feed-forward.
  """

  architecture: str
  tensors: Mapping[str, Stored]
  read: Callable[[Fields], dict[str, Any]]
  write: Callable[[DecoderConfig], dict[str, Any]]
  fields: tuple[str, ...]
  fixed: Mapping[str, Any]
  ignored: tuple[str, ...] = ()
  defaults: Mapping[str, Any] = {}
  mlp: str = 'intermediate_size'


def integer(fields: Fields, name: str, default: int | None = None) -> int:
  """Returns an integer field; ValueError for anything else."""
  value = fields.get(name)
  value = default if value is None else value
  if not isinstance(value, int) or isinstance(value, bool):
    raise ValueError(f'{name} must be an integer; got {value!r:.80}')
  if abs(value) >= 2**31:
    raise ValueError(f'{name} = {value:.2e} is out of range')
  return value


def number(fields: Fields, name: str, default: float | None = None) -> float:
  """Returns a number field as a float; ValueError for anything else."""
  value = fields.get(name, default)
  if not isinstance(value, int | float) or isinstance(value, bool):
    raise ValueError(f'{name} must be a number; got {value!r:.80}')
  if not abs(value) < 1e30:
    raise ValueError(f'{name} = {value:.2e} is out of range')
  return float(value)


def table(fields: Fields, name: str) -> dict[str, Any]:
  """Returns an object, {} where there is none; ValueError for anything else."""
  value = fields.get(name) or {}
  if not isinstance(value, Mapping):
    raise ValueError(f'{name} must be an object; got {value!r:.80}')
  return dict(value)


# Rotary positions.

ROPE = ('rope_theta', 'rope_parameters', 'rope_scaling')


def read_rope(fields: Fields, theta: float = 10_000.0) -> dict[str, Any]:
  """Returns the `rope_theta` and `rope_scaling` of a `DecoderConfig`.

  Both spellings are read: `rope_parameters` of transformers 5; `rope_theta`
  and `rope_scaling` of older files. Where a file has both they must agree.

  Args:
    fields: the decoded file.
    theta: the base where the file names none.
  """
  bases = [number(fields, 'rope_theta')] if 'rope_theta' in fields else []
  scalings = []
  for name in ('rope_parameters', 'rope_scaling'):
    if rope := table(fields, name):
      if 'rope_theta' in rope:
        bases.append(number(rope, 'rope_theta'))
        del rope['rope_theta']
      scalings.append(scaling_from(name, rope))
  return {
    'rope_theta': agreed('rope_theta', bases, theta),
    'rope_scaling': agreed('scaling of rotary angles', scalings, None),
  }


def write_rope(config: DecoderConfig) -> dict[str, Any]:
  """Returns the rotary fields, in both spellings, so that all engines agree."""
  scaling = scaling_fields(config.rope_scaling)
  return {
    'rope_theta': config.rope_theta,
    'rope_scaling': scaling if config.rope_scaling else None,
    'rope_parameters': {'rope_theta': config.rope_theta, **scaling},
  }


def agreed(name: str, values: list, default: Any) -> Any:
  """Returns the value that all fields of a file agree on, or the default."""
  if any(value != values[0] for value in values):
    raise ValueError(f'expected one value of {name}; got {values}')
  return values[0] if values else default


def scaling_from(name: str, rope: Fields) -> Scaling | None:
  """Returns the scaling that a dictionary of a file describes.

  Args:
    name: of the dictionary, for errors.
    rope: its items, without the base.

  Raises: ValueError when the type or one of the items is not implemented, or
    one is missing.
  """
  items = dict(rope)
  kinds = {str(items.pop(key)) for key in ('rope_type', 'type') if key in items}
  kinds = kinds or {'default'}
  if kinds == {'default'} and not items:
    return None
  if len(kinds) > 1 or not kinds <= SCALINGS.keys():
    raise ValueError(
      f'{name} = {dict(rope)!r}: the types implemented are default, without '
      f'any other item, {", ".join(SCALINGS)}'
    )
  (kind,) = kinds
  values = {}
  for field in dataclasses.fields(SCALINGS[kind]):
    required = field.default is dataclasses.MISSING
    if required or items.get(field.name) is not None:
      read = {bool: _flag, int: integer}.get(field.type, number)
      values[field.name] = read(items, field.name)
    items.pop(field.name, None)
  if items:
    raise ValueError(
      f'{name} = {dict(rope)!r}: {", ".join(items)} is not implemented for '
      f'{kind}'
    )
  return SCALINGS[kind](**values)


def scaling_fields(scaling: Scaling | None) -> dict[str, Any]:
  """Returns the dictionary of a file; the inverse of `scaling_from`."""
  if scaling is None:
    return {'rope_type': 'default'}
  (kind,) = [name for name, one in SCALINGS.items() if type(scaling) is one]
  values = dataclasses.asdict(scaling).items()
  return {'rope_type': kind} | {k: v for k, v in values if v is not None}


def _flag(fields: Fields, name: str) -> bool:
  if not isinstance(fields[name], bool):
    raise ValueError(f'{name} must be true or false; got {fields[name]!r}')
  return fields[name]


# Sliding windows.

_FULL, _SLIDING = 'full_attention', 'sliding_attention'


def read_windows(
  fields: Fields, window: int | None, slides: Callable[[int], bool]
) -> dict[str, Any]:
  """Returns the `window` and `sliding` of a `DecoderConfig`.

  Args:
    fields: the decoded file. `layer_types` is optional.
    window: positions in a window; None if there are no windows.
    slides: (layer) -> whether it has a window, if `layer_types` is absent.
  """
  layers = integer(fields, 'num_hidden_layers')
  kinds = fields.get('layer_types')
  if kinds is None:
    kinds = [
      _SLIDING if window is not None and slides(i) else _FULL
      for i in range(layers)
    ]
  if (
    not isinstance(kinds, list | tuple)
    or len(kinds) != layers
    or any(kind not in (_FULL, _SLIDING) for kind in kinds)
  ):
    raise ValueError(
      f'layer_types = {kinds!r:.80}: expected {_FULL} or {_SLIDING} for each '
      f'of the {layers} layers'
    )
  if _SLIDING not in kinds:
    return {'window': None, 'sliding': ()}
  if window is None:
    raise ValueError(
      f'layer_types = {kinds!r}, but no sliding_window is in use: '
      'set one, or use full_attention in all layers'
    )
  return {'window': window, 'sliding': tuple(k == _SLIDING for k in kinds)}


def layer_types(config: DecoderConfig) -> list[str]:
  """Returns the field of that name."""
  sliding = config.sliding or (False,) * config.layers
  return [_SLIDING if slides else _FULL for slides in sliding]
