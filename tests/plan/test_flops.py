"""Operations of matrix products, against the compiler's count."""

import jax
import jax.numpy as jnp
import pytest

from jopd import sharding
from jopd.models.flash import splash
from jopd.plan import flops

DEPTH, ROWS, WIDTH = 5, 64, 256
SHAPES = (
  jax.ShapeDtypeStruct((DEPTH, WIDTH, WIDTH), jnp.float32),
  jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32),
)
ONE = 2 * ROWS * WIDTH * WIDTH


def _loss(weights, x, *, unroll, remat=False):
  step = lambda x, w: (jnp.tanh(x @ w), None)
  step = jax.checkpoint(step) if remat else step
  return jnp.sum(jax.lax.scan(step, x, weights, unroll=unroll)[0])


def _compilers(function):
  return jax.jit(function).lower(*SHAPES).compile().cost_analysis()['flops']


# Kills: a loop that counts once, as the compiler's own count does, and a
# backward pass that is left out.
@pytest.mark.parametrize('remat', [False, True])
def test_a_loop_counts_as_its_unrolled_form_does_for_the_compiler(remat):
  def gradient(unroll, remat=remat):
    loss = lambda w, x: _loss(w, x, unroll=unroll, remat=remat)
    return jax.grad(loss, argnums=(0, 1))

  ours = flops.count(jax.jit(gradient(1)).trace(*SHAPES))
  # Unrolled, the compiler finds that recomputing is not needed.
  unrolled = _compilers(gradient(DEPTH, remat=False))
  recomputed = DEPTH * ONE if remat else 0
  assert ours == pytest.approx(unrolled + recomputed, rel=0.02)
  assert _compilers(gradient(1)) < 0.5 * unrolled


def test_turns_count_where_the_data_decides_them():
  def run(w, x):
    body = lambda state: (state[0] + 1, state[1] @ w[0])
    return jax.lax.while_loop(lambda s: s[0] < s[1][0, 0], body, (0.0, x))

  assert flops.count(jax.jit(run).trace(*SHAPES), turns=7) == 7 * ONE


# Kills: branches that add up, and operations of one shard taken for all.
def test_of_branches_the_longest_counts_and_of_shards_all():
  def run(w, x):
    few, many = lambda: x @ w[0], lambda: x @ w[0] @ w[1]
    return jax.lax.cond(x[0, 0] > 0, few, many)

  assert flops.count(jax.jit(run).trace(*SHAPES)) == 2 * ONE
  mesh = sharding.make_mesh(8)
  spec = jax.sharding.PartitionSpec
  local = jax.shard_map(
    lambda w, x: x @ w[0],
    mesh=mesh,
    in_specs=(spec(), spec('data')),
    out_specs=spec('data'),
  )
  assert flops.count(jax.jit(local).trace(*SHAPES)) == ONE


# Kills: experts counted as if each saw every token.
def test_grouped_products_count_their_rows_once():
  rows, experts = jnp.zeros((ROWS, WIDTH)), jnp.zeros((4, WIDTH, 32))
  sizes = jnp.full(4, ROWS // 4)
  traced = jax.jit(jax.lax.ragged_dot).trace(rows, experts, sizes)
  assert flops.count(traced) == 2 * ROWS * WIDTH * 32


# Kills: a kernel that counts as one of its blocks.
def test_all_blocks_of_a_kernel_count():
  qkv = [jnp.zeros((1, 256, 2, 128)), *[jnp.zeros((1, 2, 256, 128))] * 2]
  traced = jax.jit(lambda *qkv: splash(*qkv, scale=1.0)).trace(*qkv)
  # Scores, and their product with the values, for each of two heads.
  assert flops.count(traced) == 2 * 2 * 2 * 256 * 256 * 128
  assert flops.count(traced, kernels=True) == flops.count(traced)
  plain = jax.jit(jnp.dot).trace(jnp.zeros((8, 8)), jnp.zeros((8, 8)))
  assert flops.count(plain, kernels=True) == 0
