"""Compares short runs of the configs with recorded ones.

Each config runs small, 20 steps a stage (40 where a model is prepared), and its
losses, gradient norms, rewards and lengths are compared with those recorded in
tests/fixed_runs.json, before the code was rearranged. The largest difference of
each is printed; it is relative where a number is above 1.

  python benchmarks/fixed_runs.py                  # all configs, 20 minutes
  python benchmarks/fixed_runs.py many_faces/opd scope  # files of such a name

A run uses one core: with several, sums are taken in another order.
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile

from jopd.cli import train
from jopd.run import overrides

ROOT = pathlib.Path(__file__).parents[1]
RECORDED = ROOT / 'tests' / 'fixed_runs.json'
COMPARED = ('loss', 'grad_norm', 'reward', 'response_length')


def short(file: str):
  """The config of a file, small and cut to a few steps."""
  size = '' if file.endswith('quickstart.py') else ':tiny'
  config = overrides.load(f'{ROOT / file}{size}')
  for name in config.stages:
    config[name].steps = 40 if prepares(name) else 20
    config[name].eval_every = 0
  config.eval.prompts, config.eval.samples = 16, 0
  config.loggers = ()
  return config


def prepares(stage: str) -> bool:
  """Whether a stage makes a model for the recipe, and is not part of it."""
  return stage.startswith('learn_') or stage in ('teach', 'warm')


def run(file: str) -> list[dict]:
  """The compared numbers of each step of a short run."""
  with tempfile.TemporaryDirectory() as folder:
    train.run(short(file), pathlib.Path(folder))
    lines = (pathlib.Path(folder) / 'metrics.jsonl').read_text().splitlines()
  return [
    {'stage': row['stage'], 'step': row['step']}
    | {name: row[name] for name in COMPARED if name in row}
    for row in map(json.loads, lines)
    if row['kind'] == 'train' and not prepares(row['stage'])
  ]


def difference(rows: list[dict], recorded: list[dict]) -> float:
  """The largest difference of a number, relative where it is above 1."""
  steps = [(row['stage'], row['step']) for row in recorded]
  if [(row['stage'], row['step']) for row in rows] != steps:
    raise ValueError('the runs do not have the same steps')
  return max(
    abs(row[name] - old[name]) / max(1.0, abs(old[name]))
    for row, old in zip(rows, recorded, strict=True)
    for name in COMPARED
    if name in old
  )


def main() -> int:
  """Runs the configs; returns 1 if one differs by more than the tolerance."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('names', nargs='*', help='ends of files, without .py')
  parser.add_argument('--tolerance', type=float, default=1e-5)
  args = parser.parse_args()
  cores = sorted(os.sched_getaffinity(0))
  os.sched_setaffinity(0, {cores[os.getpid() % len(cores)]})
  recorded = json.loads(RECORDED.read_text())
  ends = tuple(f'/{name}.py' for name in args.names) or ('',)
  files = [file for file in recorded if file.endswith(ends)]
  if not files:
    parser.error(f'no config ends with {" or ".join(args.names)}')
  differences = []
  for file in files:
    differences.append(difference(run(file), recorded[file]))
    print(f'{file:<48} {differences[-1]:.1e}', flush=True)
  return int(max(differences) > args.tolerance)


if __name__ == '__main__':
  sys.exit(main())
