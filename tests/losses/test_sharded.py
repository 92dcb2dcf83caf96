"""On a mesh: the same numbers, and what travels between devices."""

import functools
import re

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np
import pytest

from jopd import losses
from jopd.losses.distributions import group_size

B, T, D, V = 4, 6, 8, 128 * 9
# Like 151936 = 128 * 1187 they can be cut in eight, but not into eight parts
# that are each a number of groups of neighbours.
SHORT, LONG = 128 * 35, 128 * 131
LENGTHS = np.array([6, 1, 0, 4])  # full, one token, empty, middling
COUNT = int(LENGTHS.sum())
PADDED = V - 24
RNG = np.random.default_rng(0)
ROWS = PartitionSpec(('data', 'fsdp'))
MESHES = {  # data, fsdp, tensor; and how the heads [V, D] lie
  'all axes': ((2, 2, 2), PartitionSpec('tensor', 'fsdp')),
  'vocabulary': ((1, 1, 8), PartitionSpec('tensor')),
}


def normal(*shape):
  return jnp.asarray(RNG.normal(size=shape), jnp.float32)


MASK = jnp.asarray(np.arange(T)[None, :] < LENGTHS[:, None])
TOKENS = {
  'token': jnp.asarray(RNG.integers(PADDED, size=(B, T))),
  'sampler_logp': normal(B, T) - 3,
  'mask': MASK,
}
HEADS = {
  'student': normal(V, D),
  'teacher': normal(V, D),
  'other': normal(V, D),
}
HIDDEN = {name: normal(B, T, D) for name in HEADS}
# A teacher near the student, so that they agree on some of their likeliest.
HEADS['teacher'] = HEADS['student'] + 0.2 * HEADS['teacher']
HIDDEN['teacher'] = HIDDEN['student'] + 0.2 * HIDDEN['teacher']
QUICK = {'xla_backend_optimization_level': 0}  # each program runs once

match = losses.divergence
support = lambda of, tail='bucket': functools.partial(
  losses.top_k, k=4, of=of, tail=tail
)
top = functools.partial(losses.top_fraction, of='student_entropy', fraction=0.4)
to_come = functools.partial(losses.discounted_return, gamma=0.7)
other = functools.partial(losses.teacher, role='other')
both = functools.partial(
  losses.mixture, weights={'teacher': 0.25, 'other': 0.75}
)
CASES = {
  'two passes': {
    'top': losses.Term(match(losses.reverse_kl), weight=top),
    'row': losses.Term(
      losses.policy_gradient(losses.reinforce, advantage=to_come, target=other)
    ),
  },
  'supports': {
    of: losses.Term(match(losses.reverse_kl, support=support(of)))
    for of in ('target', 'union', 'intersection')
  }
  | {
    'renormalized': losses.Term(
      match(losses.forward_kl, support=support('union', 'renormalize'))
    )
  },
  'teachers': {
    'mixture': losses.Term(match(losses.forward_kl, target=both)),
    'other': losses.Term(match(losses.generalized_jsd, target=other)),
    'k2': losses.Term(losses.kl_estimate(losses.k2), weight=losses.importance),
  },
}


def run(hidden, heads, tokens, terms, **kwargs):
  """(loss, metrics), and the gradients to the student's hidden and head."""

  def loss(hidden_student, head_student):
    teachers = {
      name: (hidden[name], heads[name]) for name in heads if name != 'student'
    }
    return losses.distill_loss_chunked(
      hidden_student,
      head_student,
      teachers,
      tokens['token'],
      tokens['sampler_logp'],
      terms,
      mask=tokens['mask'],
      **{'count': COUNT, 'chunk_tokens': 8} | kwargs,
    )

  both = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
  return both(hidden['student'], heads['student'])


@functools.cache
def on_one_device(case, vocab_size):
  function = functools.partial(run, terms=CASES[case], vocab_size=vocab_size)
  return jax.jit(function, compiler_options=QUICK)(HIDDEN, HEADS, TOKENS)


def make_mesh(shape):
  return jax.make_mesh(
    shape, ('data', 'fsdp', 'tensor'), axis_types=(AxisType.Auto,) * 3
  )


# Promise 3, for all that looks beyond a token or a shard. Kills a quantile, a
# support, or a normaliser of one shard; ids that are counted from a shard's
# start; a candidate that two shards both bring; padding that only the last
# shard has; advantages that are summed over one device's part.
@pytest.mark.parametrize('mesh', MESHES)
@pytest.mark.parametrize(
  'case, vocab_size',
  [('two passes', None), ('supports', PADDED), ('teachers', None)],
)
def test_a_mesh_changes_nothing(case, vocab_size, mesh):
  assert group_size(V, 4) > 1
  shape, axes = MESHES[mesh]
  mesh = make_mesh(shape)
  rows, table = NamedSharding(mesh, ROWS), NamedSharding(mesh, axes)
  function = functools.partial(run, terms=CASES[case], vocab_size=vocab_size)
  with jax.set_mesh(mesh):
    got = jax.jit(function, compiler_options=QUICK)(
      jax.device_put(HIDDEN, rows),
      jax.device_put(HEADS, table),
      jax.device_put(TOKENS, rows),
    )
  expected = on_one_device(case, vocab_size)
  for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
    scale = max(1e-3, float(jnp.max(jnp.abs(y))))
    np.testing.assert_allclose(x, y, atol=2e-5 * scale, rtol=1e-5)
  if vocab_size:
    d_head = np.asarray(got[1][1])
    np.testing.assert_array_equal(d_head[vocab_size:], 0)


def travels(function, mesh, vocab):
  """(operation, dims) of all that a compiled program sends between devices.

  The results: of an all-gather what every device then holds, of a reduction
  what is summed.
  """
  rows = NamedSharding(mesh, ROWS)
  table = NamedSharding(mesh, PartitionSpec('tensor'))
  array = jax.ShapeDtypeStruct
  hidden = array((B, T, D), jnp.float32, sharding=rows)
  head = array((vocab, D), jnp.float32, sharding=table)
  tokens = {
    name: array(x.shape, x.dtype, sharding=rows) for name, x in TOKENS.items()
  }
  hidden, head = (
    dict.fromkeys(('student', 'teacher'), x) for x in (hidden, head)
  )
  with jax.set_mesh(mesh):
    program = jax.jit(function, compiler_options=QUICK)
    text = program.lower(hidden, head, tokens).compile().as_text()
  kinds = 'all-gather|all-to-all|collective-permute|all-reduce|reduce-scatter'
  found = []
  for line in text.splitlines():
    if match := re.search(rf' = (.*?) ({kinds})(?:-start)?\(', line):
      for dims in re.findall(r'\w+\[([\d,]*)\]', match[1]):
        found.append((match[2], tuple(int(n) for n in dims.split(',') if n)))
  assert found  # or the pattern is out of date
  return found


def largest_moved(found):
  """Elements of the largest array that is moved and not reduced."""
  return max(
    (int(np.prod(d)) for o, d in found if 'reduce' not in o), default=0
  )


# The full divergence needs a maximum and some sums of each row: only reductions
# travel, and none as wide as a shard of the vocabulary but the gradient of the
# head, over the devices that share it. Kills a normaliser, a loss or a sampled
# token for which the logits must come together.
@pytest.mark.parametrize('shape', [(1, 1, 8), (2, 1, 4), (4, 1, 2)])
def test_the_full_divergence_gathers_nothing(shape):
  terms = {
    'a': losses.Term(match(losses.reverse_kl)),
    'b': losses.Term(losses.policy_gradient(losses.reinforce)),
  }
  function = functools.partial(run, terms=terms, with_stats=False)
  mesh = make_mesh(shape)
  found = travels(function, mesh, SHORT)
  assert largest_moved(found) == 0
  shard = SHORT // shape[2]
  assert all(shard not in dims or D in dims for _, dims in found)


# The likeliest, 4 for the support and 16 for the stats, are searched for shard
# by shard, and what travels are a few candidates. Kills a search along an axis
# that is cut, or by groups that lie across the cuts, for which the compiler
# brings the logits together. The plain one below shows that it does, and that
# it would be seen.
@pytest.mark.parametrize('shape', [(1, 1, 8), (2, 1, 4)])
@pytest.mark.parametrize(
  'vocab, with_stats, of',
  [(SHORT, False, 'target'), (SHORT, False, 'union'), (LONG, True, 'target')],
)
def test_logits_never_travel(vocab, with_stats, of, shape):
  terms = {'a': losses.Term(match(losses.reverse_kl, support=support(of)))}
  function = functools.partial(run, terms=terms, with_stats=with_stats)
  found = travels(function, make_mesh(shape), vocab)
  assert 0 < largest_moved(found) < 8 * vocab / 4  # a chunk has 8 tokens
  assert all(vocab not in dims for _, dims in found)


@pytest.mark.parametrize('shape', [(1, 1, 8), (2, 1, 4)])
def test_a_plain_search_would_gather_the_logits(shape):
  def plain(student_logp, target_logp):
    index = jax.lax.top_k(jax.lax.stop_gradient(target_logp), 4)[1]
    keep = lambda x: jnp.take_along_axis(x, index, axis=-1)
    return keep(student_logp), keep(target_logp)

  terms = {'a': losses.Term(match(losses.reverse_kl, support=plain))}
  function = functools.partial(run, terms=terms, with_stats=False)
  found = travels(function, make_mesh(shape), SHORT)
  assert largest_moved(found) >= 8 * SHORT
  assert any(SHORT in dims for _, dims in found)
