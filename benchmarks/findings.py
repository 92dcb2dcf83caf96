"""Reproduces the findings of the founding papers on a CPU.

  python benchmarks/findings.py --workdir=runs/findings
  python benchmarks/findings.py --only=topk_bias --seeds=1
  python benchmarks/findings.py --page=docs/findings.md  # runs nothing

Each finding lists in advance the statements that must hold, trains small models
with ordinary configs, and reports for each seed which statements hold. Models
that findings share are trained once. A finished run is kept, so the same
command resumes. Results go to WORKDIR/results.json and WORKDIR/pictures.
"""

import argparse
import inspect
import json
import os
import pathlib
import sys
import time

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

from founding import FINDINGS
from founding.lab import Lab
from founding.page import refill, table
from founding.pictures import draw
from tqdm import tqdm

from jopd.compilation import cache_compilations


def main():
  """Runs the findings."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    '--only', action='append', choices=FINDINGS, help='may be repeated'
  )
  parser.add_argument('--seeds', type=int, default=3)
  parser.add_argument('--workdir', type=pathlib.Path, default='runs/findings')
  parser.add_argument('--json', action='store_true', help='print results.json')
  parser.add_argument(
    '--page', type=pathlib.Path, help='only write the results into this page'
  )
  args = parser.parse_args()
  if args.seeds < 1:
    parser.error('--seeds must be at least 1')

  path = args.workdir / 'results.json'
  if args.page:
    refill(args.page, json.loads(path.read_text()))
    return
  cache_compilations()
  names = args.only or list(FINDINGS)
  for name in names:
    tqdm.write(promise(name), file=sys.stderr)
  todo = [(seed, name) for seed in range(args.seeds) for name in names]
  for seed, name in (bar := tqdm(todo, unit='finding')):
    bar.set_description(f'{name}, seed {seed}')
    found = examine(FINDINGS[name], Lab(args.workdir, seed))
    tqdm.write(verdict(name, seed, found), file=sys.stderr)
    # Read anew: another process may be at other findings.
    results = json.loads(path.read_text()) if path.is_file() else {}
    results.setdefault(name, {})[str(seed)] = found
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + '\n')
    draw(name, FINDINGS[name], results[name], args.workdir)
  if args.json:
    print(json.dumps(results))
  else:
    print('\n\n'.join(f'{n}\n\n{table(n, results[n])}' for n in names))


def examine(finding, lab: Lab) -> dict:
  """What one seed shows."""
  start = time.perf_counter()
  rows = finding.measure(lab)
  held = dict(zip(finding.SIGNATURE, finding.judge(rows), strict=True))
  return dict(
    passed=all(held.values()),
    statements=held,
    rows=rows,
    seconds=round(time.perf_counter() - start, 1),
  )


def promise(name: str) -> str:
  """The statements of a finding, printed before it is run."""
  claim = inspect.getdoc(FINDINGS[name]).splitlines()[0]
  statements = ''.join(f'\n  - {s}' for s in FINDINGS[name].SIGNATURE)
  return f'{name}: {claim}{statements}'


def verdict(name: str, seed: int, found: dict) -> str:
  """One line per statement."""
  lines = [
    f'  {"pass" if held else "FAIL"}  {statement}'
    for statement, held in found['statements'].items()
  ]
  return '\n'.join([f'{name}, seed {seed}, {found["seconds"]} s', *lines])


if __name__ == '__main__':
  main()
