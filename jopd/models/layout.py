"""Between our arrays and the tensors of a file: names, order, grouping.

Both sides name their axes, so one pair of functions serves every weight: an
array of ours is [layers, embed, heads, head_dim] where a file has one tensor
per layer of shape [heads * head_dim, embed].
"""

from collections.abc import Sequence
import math
from typing import NamedTuple

import numpy as np

Axis = str | None

_COUNTED = ('layer', 'expert')


class Stored(NamedTuple):
  """How a file stores one array of ours.

  Attributes:
    name: of the tensor; `{layer}` stands for the number of a layer, and then
      the array has a leading axis 'layers' that the tensors do not have;
      `{expert}` and 'experts' likewise, after it.
    dims: per dimension of the tensor, the axes it is the row-major product
      of. The output of q_proj is (('heads', 'head_dim'), ('embed',)).
  """

  name: str
  dims: tuple[tuple[Axis, ...], ...]


class Leaf(NamedTuple):
  """One array of ours and the tensors that hold it."""

  stored: Stored
  axes: tuple[Axis, ...]
  shape: tuple[int, ...]

  @property
  def stacked(self) -> int:
    """How many leading axes the tensors do not have."""
    return len(self.axes) - sum(len(dim) for dim in self.stored.dims)

  @property
  def names(self) -> dict[tuple[int, ...], str]:
    """Names of the tensors by their place along the stacked axes, in order."""
    places = np.ndindex(self.shape[: self.stacked])
    return {at: self.name(at) for at in places}

  def name(self, at: tuple[int, ...]) -> str:
    """Name of the tensor at a place along the stacked axes."""
    return self.stored.name.format(**dict(zip(_COUNTED, at, strict=False)))

  @property
  def tensor_shape(self) -> tuple[int, ...]:
    """Shape of each of the tensors."""
    size = dict(zip(self.axes, self.shape, strict=True))
    return tuple(math.prod(size[a] for a in dim) for dim in self.stored.dims)


def _order(dims: Sequence[Sequence[Axis]], axes: Sequence[Axis]) -> list[int]:
  """Which axis of ours each axis of the tensor is, product by product."""
  return [axes.index(axis) for dim in dims for axis in dim]


def read_part(
  tensor, dims: Sequence[Sequence[Axis]], axes, shape, index
) -> np.ndarray:
  """Returns `ours[index]`, reading only the rows and columns that it needs.

  Args:
    tensor: what is stored; only sliced, so that a file's lazy slice will do.
    dims: as in `Stored`.
    axes: our names of the axes, without 'layers'.
    shape: our sizes of `axes`.
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
  """Returns the tensor that stores `array`; the inverse of reading it all."""
  size = dict(zip(axes, array.shape, strict=True))
  shape = [math.prod(size[axis] for axis in dim) for dim in dims]
  tensor = array.transpose(_order(dims, axes)).reshape(shape)
  return np.ascontiguousarray(tensor)
