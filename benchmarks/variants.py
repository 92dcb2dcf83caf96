"""Every variant in configs/variants beside plain distillation, over seeds.

  python benchmarks/variants.py --workdir=runs/variants
  python benchmarks/variants.py --only=iw_opd --only=tip --seeds=1
  python benchmarks/variants.py --page=docs/variants.md  # runs nothing

A variant's small form trains on the models, prompts and number of responses
that plain OPD, OPD by the sampled token, GRPO and a control without a teacher
train on, too. Models are taught once per seed and shared. A finished run is
kept, so the same command goes on where it stopped; one that failed is tried
again. Results go to WORKDIR/results, one file for each method and seed.
"""

import argparse
import json
import os
import pathlib
import sys
import time

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

from comparison import lab as labs
from comparison.page import refill
from founding.lab import Lab
from tqdm import tqdm

from jopd.compilation import cache_compilations


def main() -> int:
  """Runs what is left to run; returns the exit code."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  known = labs.methods()
  parser.add_argument(
    '--only', action='append', choices=known, help='may be repeated'
  )
  parser.add_argument('--seeds', type=int, default=3)
  parser.add_argument('--workdir', type=pathlib.Path, default='runs/variants')
  parser.add_argument(
    '--shorten', type=int, default=1, help='divides all steps, for a trial'
  )
  parser.add_argument(
    '--page', type=pathlib.Path, help='only write the results into this page'
  )
  args = parser.parse_args()
  if args.page:
    refill(args.page, args.workdir / 'results')
    return 0
  cache_compilations()
  names = args.only or list(known)
  todo = [(seed, name) for seed in range(args.seeds) for name in names]
  failed = 0
  for seed, name in (bar := tqdm(todo, unit='method')):
    bar.set_description(f'{name}, seed {seed}')
    found = compare(Lab(args.workdir, seed), known[name], args.shorten)
    write(args.workdir / 'results' / f'{name}-{seed}.json', found)
    failed += 'error' in found
    tqdm.write(f'{name}, seed {seed}: {_line(found)}', file=sys.stderr)
  return 1 if failed else 0


def compare(lab: Lab, file: pathlib.Path, shorten: int) -> dict:
  """What one seed of a variant and the plain runs beside it show."""
  start = time.perf_counter()
  found = dict(method=file.stem, seed=lab.seed)
  try:
    runs = labs.prepare(lab, file, shorten=shorten)
    found['plain'] = {
      kind: dict(name=name, **labs.measure(lab.run(name, config), config))
      for kind, (name, config) in runs.plain.items()
    }
    record = lab.run(f'own/{file.stem}', runs.own)
    found |= labs.measure(record, runs.own)
  except (ValueError, FloatingPointError) as error:
    # The others are still to come; the file says so, and so does the page.
    found['error'] = str(error)
  return found | dict(process_seconds=time.perf_counter() - start)


def write(path: pathlib.Path, found: dict) -> None:
  """One result as a file, whole or not at all."""
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_suffix('.tmp')
  temporary.write_text(json.dumps(found, indent=2) + '\n')
  temporary.replace(path)


def _line(found: dict) -> str:
  if 'error' in found:
    return f'FAILED: {found["error"]}'
  ends = lambda run: ' -> '.join(f'{x:.3f}' for x in run['accuracy'].values())
  plain = ', '.join(f'{k} {ends(x)}' for k, x in found['plain'].items())
  return f'{ends(found)}; {plain}; {found["process_seconds"]:.0f} s'


if __name__ == '__main__':
  sys.exit(main())
