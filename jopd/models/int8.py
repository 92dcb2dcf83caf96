"""Matrices rounded to eight bits, for what is sampled from or frozen.

Decoding reads every weight once per token, so its speed is their size: int8 is
half of bfloat16. Products run in the compute dtype; the weights are widened in
the registers of the product where the compiler fuses the two, as on a TPU. A
CPU widens them in memory, so there it costs time. Without a cache `apply` does
it layer by layer, so that frozen parameters take half of their memory.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from jopd.models.api import Params

_STACKED = ('layers', 'experts')
"""Axes of arrays that hold many matrices."""

Axes = tuple[str | None, ...]


class Int8(NamedTuple):
  """An array as values * scale; its place in a tree of parameters."""

  values: Array  # int8
  scale: Array  # of the same rank, 1 along the axes that share a scale


def quantize(array: Array, shared: tuple[int, ...]) -> Int8:
  """The array in eight bits, symmetrically about 0.

  Args:
    array: any shape, float.
    shared: axes along which the numbers share a scale, the largest of them
      over 127; those that a product sums over, so that each of its outputs has
      a scale of its own.

  Returns:
    An `Int8`; the scale is in the array's dtype. No number is further off
    than half a scale, but for the rounding of that dtype. Zeros stay zeros.
  """
  largest = jnp.max(jnp.abs(array), axis=shared, keepdims=True)
  scale = jnp.where(largest > 0, largest / 127, 1).astype(array.dtype)
  values = jnp.round(array / scale).astype(jnp.int8)
  return Int8(values, scale)


def quantize_params(params: Params, axes: dict[str, Any]) -> Params:
  """The parameters with their matrices in eight bits.

  Matrices are the arrays that read or write the residual stream, 'embed', but
  for those of the vocabulary: an embedding is looked up row by row, which
  costs nothing, and the head is for the caller to round. Norms, biases and the
  routers of experts stay, and so does what is in eight bits already.

  Args:
    params: of a `Model`.
    axes: `Model.axes`.

  Returns:
    A tree of the same nesting with an `Int8` for each matrix.
  """

  def one(array, names):
    found = sides(names)
    if isinstance(array, Int8) or not found:
      return array
    inputs, _ = found
    return quantize(array, tuple(i for i, n in enumerate(names) if n in inputs))

  return jax.tree.map(one, params, axes, is_leaf=lambda x: isinstance(x, Int8))


def sides(names: Axes) -> tuple[Axes, Axes] | None:
  """The axes that a matrix's product sums over, and those that it leaves.

  None for what is no matrix of the residual stream.
  """
  sizes = tuple(n for n in names if n not in _STACKED)
  if 'embed' not in sizes or 'vocab' in sizes or len(sizes) < 2:
    return None
  others = tuple(n for n in sizes if n != 'embed')
  reads = sizes[0] == 'embed'
  return (('embed',), others) if reads else (others, ('embed',))


def dequantize(tree: Any, dtype: DTypeLike) -> Any:
  """The tree with each `Int8` as an array of the dtype; the rest as it is."""
  is_int8 = lambda x: isinstance(x, Int8)

  def one(x):
    return x.values.astype(dtype) * x.scale.astype(dtype) if is_int8(x) else x

  return jax.tree.map(one, tree, is_leaf=is_int8)
