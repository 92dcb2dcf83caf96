"""Do the configs still mean what they meant: short runs against kept ones.

Each config runs small, 20 steps a stage (40 where a model is first taught), and
its losses, gradient norms and rewards are compared with those kept in
tests/fixed_runs.json, which were made before the code was rearranged.

  python benchmarks/fixed_runs.py             # all configs, 20 minutes
  python benchmarks/fixed_runs.py opd scope   # those whose file has such a name

They run on one core: with several, sums are taken in another order.
"""

import json
import os
import pathlib
import sys
import tempfile

from jopd.cli import commands
from jopd.run import overrides

ROOT = pathlib.Path(__file__).parents[1]
KEPT = ROOT / 'tests' / 'fixed_runs.json'
COMPARED = ('loss', 'grad_norm', 'reward', 'response_length')
TOLERANCE = 1e-5


def short(file: str):
  """The config of a file, small and cut to a few steps."""
  path = str(ROOT / file)
  small = '' if file.endswith('quickstart.py') else ':tiny'
  config = overrides.load(path + small)
  for name in config.stages:
    config[name].steps = 40 if taught(name) else 20
    config[name].eval_every = 0
  config.eval.prompts, config.eval.samples = 16, 0
  config.loggers = ()
  return config


def taught(stage: str) -> bool:
  """Whether a stage makes a model for the recipe, and is none of its own."""
  return stage.startswith('learn_') or stage in ('teach', 'warm')


def run(file: str) -> list[dict]:
  """The rows of the log of a short run: of each step, what is compared."""
  with tempfile.TemporaryDirectory() as folder:
    commands.run(short(file), pathlib.Path(folder))
    lines = (pathlib.Path(folder) / 'metrics.jsonl').read_text().splitlines()
  return compared(map(json.loads, lines))


def compared(rows) -> list[dict]:
  """Of the training rows of a log, the numbers that are compared.

  Stages in which a model is first taught are left out.
  """
  return [
    {'stage': row['stage'], 'step': row['step']}
    | {name: row[name] for name in COMPARED if name in row}
    for row in rows
    if row['kind'] == 'train' and not taught(row['stage'])
  ]


def difference(rows: list[dict], kept: list[dict]) -> float:
  """The largest difference of a number, relative where it is above 1."""
  places = [(row['stage'], row['step']) for row in kept]
  if [(row['stage'], row['step']) for row in rows] != places:
    raise ValueError('the runs do not have the same steps')
  return max(
    abs(row[name] - old[name]) / max(1.0, abs(old[name]))
    for row, old in zip(rows, kept, strict=True)
    for name in COMPARED
    if name in old
  )


def main(names: list[str]) -> int:
  os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
  kept, wrong = json.loads(KEPT.read_text()), 0
  for file in kept:
    if names and pathlib.Path(file).stem not in names:
      continue
    apart = difference(run(file), kept[file])
    wrong += apart > TOLERANCE
    print(f'{file:<48} {apart:.1e}', flush=True)
  return int(wrong > 0)


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
