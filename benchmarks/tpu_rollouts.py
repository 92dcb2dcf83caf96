"""What the TPU compiler makes of decoding. No TPU is needed.

  pip install -e '.[tpu]'
  python benchmarks/tpu_rollouts.py [--quick] [--json] [--layers=N]
      [--topology=v5e:2x4] [--mesh=1x1x1] [--model=0.6B] [--rows=64]

The sampler as a run compiles it, from shapes alone, for models of Qwen3's
shapes in bfloat16: 256 prompt tokens and 512 new ones, plain sampling. Figures
of a step are read from the text of the last loop, with a cache of all 768
slots; --quick compiles that loop only. Of one device, MiB:

  read, bound  what a step reads from the device's large memory; its share of
               the weights and of the cache, once
  written      what a step writes to it; the new keys and values are < 1 % of it
  ms, bound_ms read and written, and the bound, over the memory's bandwidth
  copies       written by a step with the shape of a weight or a layer's cache
  collectives  of a step, by kind and number of devices
  args, temp   memory of the program: parameters, and all that it needs besides

For what does not fit the compiler's message is printed. A mesh is data x fsdp x
tensor, of the topology's first devices. --layers=N makes the model shallower,
to compile sooner.
"""

import argparse
import collections
import dataclasses
import functools
import itertools
import json
import math
import os
import time

# Without these libtpu queries a metadata server, and complains. What is
# compiled for is the given topology, whatever their values.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
os.environ.setdefault('TPU_ACCELERATOR_TYPE', 'v5litepod-8')
os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')  # it takes no device

import jax
from jax.experimental import topologies
import jax.numpy as jnp

from jopd import sharding
from jopd.models.decoder import DecoderConfig, make_model
from jopd.plan import hlo
from jopd.rollout.decode import make_policy
from jopd.rollout.sampler import Rollout, sample
from jopd.rollout.sampling import make_sampling_params
from jopd.rollout.stop_criteria import make_stops

LENGTHS, QUICK = (256, 512), (640, 128)  # of prompts and responses
QWEN3 = functools.partial(
  DecoderConfig,
  vocab_size=151_936,
  kv_heads=8,
  head_dim=128,
  rope_theta=1e6,
  qk_norm=True,
)
MODELS = {
  '0.6B': QWEN3(layers=28, embed=1024, heads=16, mlp=3072, tied=True),
  '1.7B': QWEN3(layers=28, embed=2048, heads=16, mlp=6144, tied=True),
  '8B': QWEN3(layers=36, embed=4096, heads=32, mlp=12288),
}
BANDWIDTH = {'v5e': 819e9, 'v5p': 2765e9}  # bytes/s, of Google's data sheets
MIB = 2**20


def make_inputs(model, mesh, rows, prompt):
  """Shapes and shardings of what `sample` takes; nothing is allocated."""
  place = lambda sharding: (
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
  )
  params = jax.eval_shape(model.init, jax.random.key(0))
  params = jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(
      x.shape, jnp.bfloat16, sharding=sharding
    ),
    params,
    sharding.param_shardings(mesh, model.axes, params),
  )
  array = jax.ShapeDtypeStruct
  by_row = (
    array((rows, prompt), jnp.int32),
    array((rows,), jnp.int32),
    jax.eval_shape(functools.partial(make_sampling_params, rows)),
  )
  by_row = jax.tree.map(place(sharding.batch_sharding(mesh)), by_row)
  whole = array((2,), jnp.uint32), make_stops([0])
  return params, *by_row, *jax.tree.map(place(sharding.replicated(mesh)), whole)


def compile_sampler(model, mesh, rows, inputs, new):
  """As `engine.make_generate` does it."""
  batch = sharding.batch_sharding(mesh)

  def run(params, prompt, prompt_length, sampling, key, stops):
    key = jax.random.wrap_key_data(key)
    return sample(
      make_policy(model, dtype=jnp.bfloat16),
      params,
      prompt,
      prompt_length,
      jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows)),
      sampling=sampling,
      stops=stops,
      max_new_tokens=new,
      shards=sharding.batch_parts(mesh),
    )

  out = dict.fromkeys(Rollout._fields, batch)
  out |= {'slot_steps': sharding.replicated(mesh)}
  program = jax.jit(run, out_shardings=Rollout(**out))
  return program.lower(*inputs).compile()


def local_shapes(model, params, mesh, rows, slots):
  """One device's weights and caches, as a decoding step reads them."""
  local = lambda x: jax.ShapeDtypeStruct(
    x.sharding.shard_shape(x.shape), x.dtype
  )
  weights = jax.eval_shape(model.unstack, jax.tree.map(local, params))
  if 'head' in weights:  # of the other table a step reads a few rows
    del weights['embed']
  parts, tensor = sharding.batch_parts(mesh), mesh.shape['tensor']
  cache = jax.eval_shape(
    functools.partial(model.init_cache, rows // parts, slots, jnp.bfloat16)
  )
  divide = lambda x: jax.ShapeDtypeStruct(
    (x.shape[0], x.shape[1] // tensor, *x.shape[2:]), x.dtype
  )
  return jax.tree.leaves(weights), jax.tree.leaves(jax.tree.map(divide, cache))


def find_copies(rows, known):
  """{what: MiB} that is written in the shape of a weight or a cache."""
  plain = lambda dims: tuple(sorted(size for size in dims if size > 1))
  known = {plain(x.shape) for x in known if len(plain(x.shape)) > 1}
  copies = collections.Counter()
  for row in rows:
    for size, in_hbm, dims in hlo.arrays(row.shape):
      if in_hbm and plain(dims) in known and row.written >= size:
        copies[f'{row.op} {dims}'] += size / MIB
  return copies


def find_collectives(body):
  """{kind and devices: MiB} of a loop's body."""
  found = collections.Counter()
  for line in body.values():
    if crossing := hlo.collective(line):
      kind, count, size = crossing
      found[f'{kind} over {count}'] += size / MIB
  return found


def study(model, mesh, rows, prompt, new, bandwidth):
  """One line of the table."""
  inputs = make_inputs(model, mesh, rows, prompt)
  start = time.perf_counter()
  try:
    compiled = compile_sampler(model, mesh, rows, inputs, new)
  except jax.errors.JaxRuntimeError as error:
    return {'fits': str(error).splitlines()[0][:200]}
  seconds = time.perf_counter() - start
  text, memory = compiled.as_text(), compiled.memory_analysis()
  computations = hlo.parse(text)
  # Of the sampler's loops only; those inside of a step turn once here.
  loops = {
    line.attribute('body'): [
      row
      for name, _ in hlo.visits(computations, line.attribute('body'), 1)
      for row in hlo.moves(computations, name)
    ]
    for body in computations.values()
    for line in body.values()
    if line.op == 'while'
  }
  read = lambda name: sum(row.read for row in loops[name])
  loop = max(loops, key=read)
  written = sum(row.written for row in loops[loop])
  weights, cache = local_shapes(model, inputs[0], mesh, rows, prompt + new)
  bound = sum(math.prod(x.shape) * x.dtype.itemsize for x in weights + cache)
  mib = lambda found: {name: round(x, 1) for name, x in found.items() if x >= 1}
  return {
    'read': round(read(loop) / MIB),
    'bound': round(bound / MIB),
    'ratio': round(read(loop) / bound, 3),
    'written': round(written / MIB),
    'ms': round((read(loop) + written) / bandwidth * 1e3, 2),
    'bound_ms': round(bound / bandwidth * 1e3, 2),
    'copies': mib(find_copies(loops[loop], weights + cache)),
    'collectives': mib(find_collectives(computations[loop])),
    'args': round(memory.argument_size_in_bytes / MIB),
    'temp': round(memory.temp_size_in_bytes / MIB),
    'compile_s': round(seconds),
  }


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--topology', default='v5e:2x4')
  parser.add_argument('--mesh', default='1x1x1')
  parser.add_argument('--model', default='0.6B')
  parser.add_argument('--rows', default='64')
  parser.add_argument('--layers', type=int)
  parser.add_argument('--quick', action='store_true')
  parser.add_argument('--json', action='store_true', help='a line of JSON each')
  args = parser.parse_args()
  devices = topologies.get_topology_desc(args.topology, 'tpu').devices
  lengths = QUICK if args.quick else LENGTHS
  bandwidth = BANDWIDTH[args.topology.split(':')[0]]
  cases = itertools.product(
    args.model.split(','), args.mesh.split(','), args.rows.split(',')
  )
  for name, sizes, rows in cases:
    shape = [int(size) for size in sizes.split('x')]
    mesh = sharding.make_mesh(*shape, devices=devices[: math.prod(shape)])
    config = MODELS[name]
    layers = args.layers or config.layers
    model = make_model(
      dataclasses.replace(config, layers=layers),
      constrain=sharding.constrain_batch(mesh),
    )
    row = {'model': name, 'layers': layers, 'mesh': sizes, 'rows': int(rows)}
    row |= study(model, mesh, int(rows), *lengths, bandwidth)
    text = (f'{name}={x}' for name, x in row.items())
    print(json.dumps(row) if args.json else ' '.join(text), flush=True)


if __name__ == '__main__':
  main()
