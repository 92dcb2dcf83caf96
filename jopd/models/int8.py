"""Weight-only int8 quantization, for rollouts and frozen models.

Decoding reads every weight once per token, so its time is proportional to
their size: int8 is half of bfloat16. Products run in the compute dtype; a TPU
fuses the conversion into the product, a CPU converts in memory, which is
slower. Without a cache `apply` converts layer by layer, so frozen parameters
take half the memory.
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
  """An array as values * scale, in the place of a matrix in the params."""

  values: Array  # int8
  scale: Array  # of the same rank, 1 along the axes that share a scale


def quantize(array: Array, shared: tuple[int, ...]) -> Int8:
  """The array in eight bits, symmetrically about 0.

  Args:
    array: any shape, float.
    shared: axes that share a scale, the largest absolute value / 127. They
      should be those that a product sums over.

  Returns:
    An `Int8`; the scale is in the array's dtype. The error is at most half a
    scale, up to rounding of that dtype. Zeros stay zeros.
  """
  largest = jnp.max(jnp.abs(array), axis=shared, keepdims=True)
  scale = jnp.where(largest > 0, largest / 127, 1).astype(array.dtype)
  values = jnp.round(array / scale).astype(jnp.int8)
  return Int8(values, scale)


def quantize_params(params: Params, axes: dict[str, Any]) -> Params:
  """The parameters with their matrices in eight bits.

  Matrices are the arrays that read or write the residual stream ('embed'),
  except those of the vocabulary: the caller quantizes the head. Norms, biases,
  routers and quantized arrays are unchanged.

  Args:
    params: of a `Model`.
    axes: `Model.axes`.

  Returns:
    A tree of the same nesting with an `Int8` for each matrix.
  """

  def one(array, names):
    axes = sides(names)
    if isinstance(array, Int8) or not axes:
      return array
    inputs, _ = axes
    return quantize(array, tuple(i for i, n in enumerate(names) if n in inputs))

  return jax.tree.map(one, params, axes, is_leaf=lambda x: isinstance(x, Int8))


def sides(names: Axes) -> tuple[Axes, Axes] | None:
  """The input axes and output axes of a matrix; None for other arrays."""
  sizes = tuple(n for n in names if n not in _STACKED)
  if 'embed' not in sizes or 'vocab' in sizes or len(sizes) < 2:
    return None
  others = tuple(n for n in sizes if n != 'embed')
  reads = sizes[0] == 'embed'
  return (('embed',), others) if reads else (others, ('embed',))


def dequantize(tree: Any, dtype: DTypeLike) -> Any:
  """The tree with each `Int8` converted to an array of the dtype."""
  is_int8 = lambda x: isinstance(x, Int8)

  def one(x):
    return x.values.astype(dtype) * x.scale.astype(dtype) if is_int8(x) else x

  return jax.tree.map(one, tree, is_leaf=is_int8)
