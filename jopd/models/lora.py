"""Low-rank adapters: a frozen model is trained through small matrices.

A pair (a, b) is trained for each matrix W, which acts as
W + alpha / rank * a b. In training the sum is computed layer by layer inside
`apply`, so that no second model is in memory; for rollouts and saving it is
computed once.

References: Hu et al., LoRA, arXiv 2106.09685, section 4.1; with an int8 base
similar to QLoRA, arXiv 2305.14314, which has four bits.
"""

from collections.abc import Sequence
import math
from typing import Any, NamedTuple

from flax import traverse_util
import jax
from jax import lax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jopd.models.api import Model, Params
from jopd.models.int8 import Int8, dequantize, sides


class LowRank(NamedTuple):
  """A matrix W and its adapter: W + a b, in the place of W in the params."""

  matrix: Array | Int8  # [*I, *O] of the base
  a: Float[Array, '*I rank']
  b: Float[Array, 'rank *O']  # multiplied by alpha / rank


class Lora(NamedTuple):
  """Settings of adapters.

  Attributes:
    rank: columns of a and rows of b.
    alpha: alpha / rank is the factor of a b. With Adam it acts as a learning
      rate, and a value that suits one rank suits others.
    targets: names of the matrices of a layer that have adapters; () for all.
    base: dtype of the frozen parameters, or 'int8'; '' for the compute dtype.
  """

  rank: int
  alpha: float = 32.0
  targets: tuple[str, ...] = ()
  base: str = ''


def adapter_axes(model: Model, lora: Lora) -> dict[str, Any]:
  """The logical axes of each adapter, like `Model.axes`.

  Matrices of experts have no adapters.

  Raises: ValueError when the rank is below 1, or a target is not a matrix of a
    layer.
  """
  if lora.rank < 1:
    raise ValueError(f'rank must be at least 1, got {lora.rank}')
  pairs = {}
  for path, names in traverse_util.flatten_dict(model.axes).items():
    pair = sides(names)
    if names[0] == 'layers' and pair and 'experts' not in names:
      inputs, outputs = pair
      pairs[path] = {
        'a': ('layers', *inputs, None),
        'b': ('layers', None, *outputs),
      }
  known = sorted({path[-1] for path in pairs})
  _check_targets(lora.targets, known)
  targets = lora.targets or known
  return traverse_util.unflatten_dict(
    {path: pair for path, pair in pairs.items() if path[-1] in targets}
  )


def _check_targets(targets: Sequence[str], known: Sequence[str]) -> None:
  for name in targets:
    if name not in known:
      raise ValueError(
        f'targets: {name!r} is not a matrix of a layer; choose from'
        f' {", ".join(known)}'
      )


def init(model: Model, lora: Lora, key: Array) -> dict[str, Any]:
  """New adapters: a is random, b is zero, so the model is unchanged.

  Both are float32 and nested like the params of the model; a is uniform in
  +- 1 / sqrt(inputs), as in PEFT.
  """
  shapes = traverse_util.flatten_dict(
    jax.eval_shape(model.init, jax.random.key(0))
  )
  axes = traverse_util.flatten_dict(model.axes)
  adapters = traverse_util.flatten_dict(adapter_axes(model, lora))
  made = {}
  for number, (path, names) in enumerate(sorted(adapters.items())):
    matrix = path[:-1]
    size = dict(zip(axes[matrix], shapes[matrix].shape, strict=True))
    shape = [lora.rank if name is None else size[name] for name in names]
    if path[-1] == 'b':
      made[path] = jnp.zeros(shape)
      continue
    bound = 1 / math.sqrt(math.prod(shape[1:-1]))
    draw = jax.random.fold_in(key, number)
    made[path] = jax.random.uniform(draw, shape, minval=-bound, maxval=bound)
  return traverse_util.unflatten_dict(made)


def attach(base: Params, adapters: dict[str, Any], lora: Lora) -> Params:
  """The base with a `LowRank` for each matrix that has adapters.

  The sums are computed by `apply`, layer by layer, or by `merge`.

  Gradients: to base and adapters.
  """
  whole = traverse_util.flatten_dict(base)
  parts = traverse_util.flatten_dict(adapters)
  for path in {path[:-1] for path in parts}:
    a, b = parts[*path, 'a'], parts[*path, 'b']
    whole[path] = LowRank(whole[path], a, b * (lora.alpha / lora.rank))
  return traverse_util.unflatten_dict(whole)


def merge(params: Params, dtype: DTypeLike) -> Params:
  """The params as arrays of the dtype, with adapters added in float32.

  One layer of one matrix is converted at a time.
  """

  def one(x):
    if not _is_packed(x):
      return x.astype(dtype)
    return lax.map(lambda layer: widen(layer, dtype), x)

  return jax.tree.map(one, params, is_leaf=_is_packed)


def widen(layer: Any, dtype: DTypeLike) -> Any:
  """One layer's params with each `LowRank` and `Int8` as an array of the dtype.

  Adapters are added in float32. Arrays are unchanged.
  """

  def one(x):
    if not isinstance(x, LowRank):
      return dequantize(x, dtype)
    matrix = dequantize(x.matrix, jnp.float32).astype(jnp.float32)
    return (matrix + _product(x.a, x.b)).astype(dtype)

  return jax.tree.map(one, layer, is_leaf=_is_packed)


def is_adapted(params: Params) -> bool:
  """Whether there is a `LowRank` among the params."""
  is_leaf = lambda x: isinstance(x, LowRank)
  return any(map(is_leaf, jax.tree.leaves(params, is_leaf=is_leaf)))


def _is_packed(x: Any) -> bool:
  return isinstance(x, LowRank | Int8)


def _product(a: Array, b: Array) -> Array:
  """[*I, rank] and [rank, *O] -> [*I, *O].

  It has a batch axis of size one, because rematerialisation with 'dots' keeps
  products without a batch axis, which would be a second model.
  """
  dims = ((a.ndim,), (1,)), ((0,), (0,))
  product = lax.dot_general(
    a[None], b[None], dims, preferred_element_type=jnp.float32
  )
  return product[0]
