"""What the TPU compiler makes of the chunked loss. No TPU is needed.

  pip install -e '.[tpu]'
  python benchmarks/tpu_losses.py [--topology=v5e:2x4] [--mesh=8x1x1,2x1x4]

Value and gradients to hidden states and head, bfloat16, compiled ahead of time
for each mesh, data x fsdp x tensor: rows divided over data and fsdp, heads
[V, D] over tensor and fsdp. Prints, of one device: its memory, MiB; the largest
float array without the width D (so not a head), in fusions too, and its share
of the device's part of [B, T, V]; the collectives, per chunk or once per batch.
'one_chunk' shows what it looks like when [B, T, V] is there.
"""

import argparse
import collections
import functools
import json
import math
import os
import re
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
from jax.sharding import NamedSharding, PartitionSpec

from jopd import losses, sharding

B, T, D, V = 8, 1024, 2048, 151936
CHUNK = {'chunk_tokens': 1024, 'with_stats': False}
CASES = {  # support, options
  'full': (losses.full, CHUNK),
  'full_stats': (losses.full, CHUNK | {'with_stats': True}),
  'top_k': (functools.partial(losses.top_k, k=64), CHUNK),
  'one_chunk': (losses.full, CHUNK | {'chunk_tokens': B * T}),
}
MIB = 2**20
SHAPE = re.compile(r'\b([a-z]+(\d*)\[([\d,]*)\])')  # f32[8,128]
COLLECTIVE = re.compile(r' = (.*?) ([a-z]+-[a-z-]+)\(.*channel_id=(\d+)')


def make_inputs(mesh):
  """Shapes and shardings; nothing is allocated."""
  rows = sharding.batch_sharding(mesh)
  axes = PartitionSpec(sharding.RULES['vocab'], sharding.RULES['embed'])
  array = jax.ShapeDtypeStruct
  hidden = array((B, T, D), jnp.bfloat16, sharding=rows)
  head = array((V, D), jnp.bfloat16, sharding=NamedSharding(mesh, axes))
  dtypes = jnp.int32, jnp.float32, jnp.bool_  # token, sampler_logp, mask
  tokens = [array((B, T), dtype, sharding=rows) for dtype in dtypes]
  return hidden, head, (hidden, head), *tokens


def loss(
  gather, support, options, hidden, head, teacher, token, sampler_logp, mask
):
  """As the learner does it: the heads are collected from fsdp first."""
  head, teacher = gather(head), (teacher[0], gather(teacher[1]))
  opd = losses.Term(losses.divergence(losses.reverse_kl, support=support))
  inputs = hidden, head, {'teacher': teacher}, token, sampler_logp
  return losses.distill_loss_chunked(
    *inputs, {'opd': opd}, mask=mask, count=jnp.sum(mask), **options
  )


def find_shapes(text):
  """(elements, bytes each, name, dims) of the arrays in a program's text."""
  for name, bits, dims in SHAPE.findall(text):
    dims = json.loads(f'[{dims}]')
    yield math.prod(dims), int(bits or 8) / 8, name, dims


def group_size(line):
  """How many devices take part in a collective, where the text says."""
  if axes := re.search(r'replica_groups=mesh\[(.*?)\] \{(.*?)\}', line):
    sizes = dict(re.findall(r"('\w+')=(\d+)", axes[1]))
    return math.prod(int(sizes[axis]) for axis in axes[2].split(','))
  groups = re.search(r'replica_groups=\[\d+,(\d+)\]', line)
  return int(groups[1]) if groups else None


def find_collectives(text):
  """[(per, kind, devices, MiB, shapes, count)], the largest first."""
  found, per = {}, None
  for line in text.splitlines():
    if line.endswith('{'):  # a computation begins
      per = 'batch' if line.startswith('ENTRY') else 'chunk'
    if match := COLLECTIVE.search(line):
      shapes = list(find_shapes(match[1]))
      mib = round(sum(n * size for n, size, *_ in shapes) / MIB, 3)
      names = ' '.join(name for _, _, name, _ in shapes)
      row = per, match[2], group_size(line), mib, names
      found[match[3]] = row  # the stages of one collective share its channel
  counts = collections.Counter(found.values()).items()
  return sorted(((*row, n) for row, n in counts), key=lambda row: -row[3])


def study(mesh, case):
  start = time.perf_counter()
  function = functools.partial(loss, sharding.gather_width(mesh), *CASES[case])
  gradients = jax.value_and_grad(function, (0, 1), has_aux=True)
  with jax.set_mesh(mesh):
    compiled = jax.jit(gradients).lower(*make_inputs(mesh)).compile()
  seconds = round(time.perf_counter() - start, 1)
  text, memory = compiled.as_text(), compiled.memory_analysis()
  widths = {D, D // mesh.shape['fsdp']}
  arrays = (x for x in find_shapes(text) if not widths & set(x[3]))
  elements, _, largest, _ = max(x for x in arrays if x[2][0] in 'fb')
  return {
    'mesh': 'x'.join(map(str, mesh.shape.values())),
    'case': case,
    'compile_s': seconds,
    'args_mib': round(memory.argument_size_in_bytes / MIB),
    'out_mib': round(memory.output_size_in_bytes / MIB),
    'temp_mib': round(memory.temp_size_in_bytes / MIB),
    'largest': largest,
    'share': round(elements * mesh.size / (B * T * V), 3),
    'collectives': find_collectives(text),
  }


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--topology', default='v5e:2x4')
  parser.add_argument('--mesh', default='8x1x1,2x1x4')
  parser.add_argument('--case', default=','.join(CASES))
  parser.add_argument('--json', action='store_true', help='a line of JSON each')
  args = parser.parse_args()
  devices = topologies.get_topology_desc(args.topology, 'tpu').devices
  for sizes in args.mesh.split(','):
    mesh = sharding.make_mesh(*map(int, sizes.split('x')), devices=devices)
    for case in args.case.split(','):
      row = study(mesh, case)
      if args.json:
        print(json.dumps(row), flush=True)
        continue
      collectives = row.pop('collectives')
      print(*(f'{name}={x}' for name, x in row.items()), flush=True)
      for per, kind, size, mib, names, count in collectives:
        if mib >= 0.1:
          print(f'  per {per}: {count} {kind} over {size}, {mib} MiB: {names}')


if __name__ == '__main__':
  main()
