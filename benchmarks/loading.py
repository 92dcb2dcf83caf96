"""How much of the host's memory loading and saving a model takes.

  python benchmarks/loading.py [--devices=8] [--embed=1024] [--layers=16]

Writes a folder of random weights in several files, and loads it in a process of
its own onto a mesh of fake CPU devices; then saves it from there. The memory of
the devices is the host's, so while it loads they are made to take copies, as
accelerators do, and only what Python and NumPy have is counted. While it saves,
all that the kernel calls anonymous is, each millisecond: mapped files are not.
MiB:

  arrays          of the model, over all devices
  largest_part    of an array that one device holds
  largest_tensor  in the files
  file            the most that one of them may hold, if not a larger tensor
  loading         the most that Python and NumPy had, above what they had before
  saving          the most of the process, above what it had before
"""

import argparse
import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc

_SHARD = 64 * 2**20  # bytes in a file
MIB = 2**20


def anonymous() -> int:
  """Bytes of this process's memory that no file backs."""
  for line in pathlib.Path('/proc/self/status').read_text().splitlines():
    if line.startswith('RssAnon:'):
      return int(line.split()[1]) * 1024
  raise RuntimeError('no RssAnon in /proc/self/status: this needs Linux')


class Peak:
  """The most memory while the `with` lasts."""

  def __enter__(self):
    self.before = self.most = anonymous()
    self._done = False
    self._thread = threading.Thread(target=self._watch)
    self._thread.start()
    return self

  def __exit__(self, *_):
    self._done = True
    self._thread.join()

  def _watch(self):
    while not self._done:
      self.most = max(self.most, anonymous())
      time.sleep(0.001)


def write(folder, args):
  """A model of random weights in bfloat16."""
  import jax
  import jax.numpy as jnp

  from jopd.models import hf

  model = hf.fresh(
    dict(
      model_type='qwen3',
      vocab_size=32_768,
      hidden_size=args.embed,
      intermediate_size=3 * args.embed,
      num_hidden_layers=args.layers,
      num_attention_heads=16,
      num_key_value_heads=8,
      head_dim=args.embed // 16,
      tie_word_embeddings=True,
    )
  )
  params = jax.jit(model.init)(jax.random.key(0))
  hf.save(folder, model, params, dtype=jnp.bfloat16, max_shard_bytes=_SHARD)


def measure(folder, args):
  """One line of the table."""
  import jax

  from jopd import sharding
  from jopd.models import hf

  mesh = sharding.make_mesh(fsdp=args.devices)
  jax.device_put = functools.partial(jax.device_put, may_alias=False)
  place = functools.partial(sharding.param_shardings, mesh)
  hf.load(folder, shardings=place)  # so that all is imported and traced
  tracemalloc.start()
  model, params = hf.load(folder, shardings=place)
  loading = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  leaves = jax.tree.leaves(params)
  tensors = [
    x[0] if names[0] == 'layers' else x
    for x, names in zip(
      leaves,
      jax.tree.leaves(model.axes, is_leaf=lambda x: isinstance(x, tuple)),
      strict=True,
    )
  ]
  largest_tensor = max(x.nbytes for x in tensors)
  del tensors
  with Peak() as saving:
    hf.save(folder.parent / 'again', model, params, max_shard_bytes=_SHARD)
  part = max(x.addressable_shards[0].data.nbytes for x in leaves)
  return {
    'arrays': sum(x.nbytes for x in leaves) // MIB,
    'largest_part': round(part / MIB, 1),
    'largest_tensor': round(largest_tensor / MIB, 1),
    'file': _SHARD // MIB,
    'loading': round(loading / MIB, 1),
    'saving': round((saving.most - saving.before) / MIB, 1),
  }


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--devices', type=int, default=8)
  parser.add_argument('--embed', type=int, default=1024)
  parser.add_argument('--layers', type=int, default=16)
  parser.add_argument('--write', type=pathlib.Path)
  parser.add_argument('--measure', type=pathlib.Path)
  args = parser.parse_args()
  if args.write:
    write(args.write, args)
  elif args.measure:
    print(json.dumps(measure(args.measure, args)))
  else:
    environment = os.environ | {
      'JAX_PLATFORMS': 'cpu',
      'XLA_FLAGS': f'--xla_force_host_platform_device_count={args.devices}',
    }
    with tempfile.TemporaryDirectory() as folder:
      for step in ('write', 'measure'):
        command = [sys.executable, *sys.argv, f'--{step}={folder}/model']
        subprocess.run(command, env=environment, check=True)


if __name__ == '__main__':
  main()
