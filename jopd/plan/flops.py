"""Operations of the matrix products of a traced program."""

import math

import jax
from jax.extend import core


def count(traced, *, turns: int = 1, kernels: bool = False) -> float:
  """Operations of a program, an addition and a multiplication apart.

  Counted in the traced program, before it is partitioned over devices. The body
  of a loop counts once per iteration; a compiler's own count takes it once.

  Args:
    traced: of `jax.jit(function).trace(*shapes)`.
    turns: iterations of loops whose number depends on the data.
    kernels: count those of Pallas kernels alone, which the compiler does not.

  Returns:
    The operations of all dot products; others are negligible. Of the branches
    of a condition the longest counts, and of a kernel all blocks, even those
    that it may skip.
  """
  return _count(traced.jaxpr.jaxpr, turns, kernels)


def _count(jaxpr, turns: int, kernels: bool) -> float:
  return sum((_of(e, turns, kernels) for e in jaxpr.eqns), 0.0)


def _of(equation, turns: int, kernels: bool) -> float:
  name, params = equation.primitive.name, equation.params
  if name == 'pallas_call':
    blocks = math.prod(params['grid_mapping'].grid)
    return blocks * _count(params['jaxpr'], 1, kernels=False)
  if name == 'dot_general' and not kernels:
    (contracted, _), _ = params['dimension_numbers']
    shape = equation.invars[0].aval.shape
    summed = math.prod(shape[axis] for axis in contracted)
    return 2.0 * summed * math.prod(equation.outvars[0].aval.shape)
  if name.startswith('ragged_dot') and not kernels:
    rows, groups = equation.invars[:2]
    return 2.0 * math.prod(rows.aval.shape) * groups.aval.shape[-1]
  inside = [_count(jaxpr, turns, kernels) for jaxpr in _jaxprs(params)]
  if name == 'cond':
    return max(inside)
  times = {
    'scan': lambda: params['length'],
    'while': lambda: turns,
    'shard_map': lambda: params['mesh'].size,
  }
  return times.get(name, lambda: 1)() * sum(inside, 0.0)


def _jaxprs(params):
  """The programs inside an equation."""
  for leaf in jax.tree.leaves(list(params.values()), is_leaf=_is_jaxpr):
    if _is_jaxpr(leaf):
      yield getattr(leaf, 'jaxpr', leaf)


def _is_jaxpr(value) -> bool:
  return isinstance(value, core.Jaxpr | core.ClosedJaxpr)
