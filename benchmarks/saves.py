"""What saving costs: seconds of a checkpoint, with and without checksums.

  python benchmarks/saves.py --megabytes=200

The train state is that of AdamW in float32 for parameters of --megabytes / 3,
on one device, so that a checkpoint has that size. It is saved --saves times by
`jopd.train.checkpoint`, and by turns without the manifest and without syncing,
as Orbax alone would; then it is verified and restored. Medians, as one JSON
line. --step, the seconds of one step, adds the share that a save every --every
steps has. Checkpoints go to a folder in --out, which is removed.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import tempfile
import time

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import jax.numpy as jnp
import optax

from jopd.train import manifest
from jopd.train.checkpoint import Checkpoints, examine, files
from jopd.train.state import init_state


def main():
  """Runs the benchmark."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--megabytes', type=int, default=200)
  parser.add_argument('--saves', type=int, default=5)
  parser.add_argument('--step', type=float, default=0.0)
  parser.add_argument('--every', type=int, default=100)
  parser.add_argument('--out', default=None)
  args = parser.parse_args()
  folder = pathlib.Path(tempfile.mkdtemp(prefix='saves-', dir=args.out))
  try:
    print(json.dumps(measure(folder, args)))
  finally:
    shutil.rmtree(folder)


def measure(folder, args):
  """Seconds by what was done."""
  rows = args.megabytes * 10**6 // (3 * 4 * 1024)
  params = {'w': jnp.zeros((rows, 1024))}
  state = init_state(params, optax.adamw(1e-3))
  # Moments too: zeros would be stored in next to nothing.
  random = lambda x: jax.random.normal(jax.random.key(0), x.shape, x.dtype)
  state = jax.tree.map(lambda x: random(x) if x.ndim == 2 else x, state)
  settings = dict(every=1, keep=2, fingerprint={})
  checkpoints = Checkpoints(folder, **settings)
  seconds = {'with': [], 'without': []}
  whole = manifest.describe, files.sync
  for step in range(1, 2 * args.saves + 3):
    kind = 'with' if step % 2 else 'without'
    if kind == 'without':
      manifest.describe = lambda *_: {'files': {}}
      files.sync = lambda path: None
    start = time.perf_counter()
    checkpoints.save(step, state)
    seconds[kind].append(time.perf_counter() - start)
    manifest.describe, files.sync = whole
  result = {
    f'save_{kind}': statistics.median(taken[1:])  # the first one warms up
    for kind, taken in seconds.items()
  }
  checkpoints.save(step + 1, state, force=True)
  start = time.perf_counter()
  steps, damaged = examine(folder)
  result['verify'] = time.perf_counter() - start
  if damaged or steps[-1] != step + 1:
    raise SystemExit(f'a checkpoint that was just saved is damaged: {damaged}')
  start = time.perf_counter()
  jax.block_until_ready(checkpoints.restore(state)[0])
  result['restore'] = time.perf_counter() - start
  checkpoints.close()
  size = sum(p.stat().st_size for p in folder.glob(f'{step + 1}/**/*'))
  result |= {'bytes': size, 'seconds_per_step': args.step, 'every': args.every}
  if args.step:
    for kind in seconds:
      own = result[f'save_{kind}']
      result[f'share_{kind}'] = own / (own + args.every * args.step)
  return result


if __name__ == '__main__':
  main()
