"""How large jopd is, and how many of its files one training step needs.

  python benchmarks/size.py [--root=CHECKOUT] [--no-step] [--files]

Counts lines of the library by room and of the tests, single files beside the
rooms, fields of the largest records, and words in docstrings that stand for
persons and speech. Then it takes the first step of configs/quickstart.py,
compilation included, and counts the files of jopd of which a function was
called: from reading the config on, and within the step. Prints a table.
"""

import argparse
import ast
from collections.abc import Iterator
import contextlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

TOOLS = ('doctor', 'plan', 'report', 'diagnose')  # the last is report, before
PERSONS = {'who', 'whose', 'nobody'}
SPEECH = {'told', 'tell', 'tells', 'say', 'says', 'ask', 'asks'}


def lines(folder: pathlib.Path) -> int:
  """Lines of all Python files under a folder."""
  return sum(len(p.read_text().splitlines()) for p in folder.rglob('*.py'))


def nodes(folder: pathlib.Path) -> Iterator[ast.AST]:
  """All parts of the syntax of all Python files under a folder."""
  for path in folder.rglob('*.py'):
    yield from ast.walk(ast.parse(path.read_text()))


def records(library: pathlib.Path) -> list[tuple[int, str]]:
  """(fields, name) of each NamedTuple and dataclass, the largest first."""
  found = []
  for node in nodes(library):
    if isinstance(node, ast.ClassDef):
      marks = ast.unparse([*node.bases, *node.decorator_list])
      if 'NamedTuple' in marks or 'dataclass' in marks:
        fields = sum(isinstance(part, ast.AnnAssign) for part in node.body)
        found.append((fields, node.name))
  return sorted(found, reverse=True)


def docstring_words(library: pathlib.Path) -> list[str]:
  """The words of all docstrings, in lower case."""
  documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
  texts = [
    ast.get_docstring(node) or ''
    for node in nodes(library)
    if isinstance(node, documented)
  ]
  return re.findall(r"[a-z']+", ' '.join(texts).lower())


def count(root: pathlib.Path) -> dict[str, object]:
  """What can be counted in the files of a checkout, by name."""
  library = root / 'jopd'
  rooms = sorted(p.parent.name for p in library.glob('*/__init__.py'))
  beside = [p.stem for p in library.glob('*.py') if p.stem != '__init__']
  by_room = {name: lines(library / name) for name in rooms}
  total = lines(library)
  words = docstring_words(library)
  share = lambda some: 1000 * sum(word in some for word in words) / len(words)
  return {
    'library': total,
    'library without doctor, plan, report': total
    - sum(by_room.get(name, 0) for name in TOOLS),
    **{f'  {name}/': size for name, size in by_room.items()},
    'tests': lines(root / 'tests'),
    'configs': lines(root / 'configs'),
    'benchmarks': lines(root / 'benchmarks'),
    'files beside the rooms': f'{len(beside)}: {", ".join(sorted(beside))}',
    'largest records': ', '.join(
      f'{name} {fields}' for fields, name in records(library)[:4]
    ),
    'who, whose, nobody / 1000 docstring words': f'{share(PERSONS):.2f}',
    'tell, say, ask / 1000 docstring words': f'{share(SPEECH):.2f}',
  }


def called_in_a_step(root: pathlib.Path) -> dict[str, list[str]]:
  """Files of jopd with a called function: 'config to step' and 'step'."""
  from jopd.run import build, overrides
  from jopd.train import pipeline

  library = f'{root / "jopd"}/'
  seen: set[str] = set()
  step: set[str] = set()
  asked = 0

  class Done(Exception):
    """The first step is over."""

  def trace(frame, event, _):
    name = frame.f_code.co_filename
    if event == 'call' and name.startswith(library):
      seen.add(name.removeprefix(library))
      if asked == 1:
        step.add(name.removeprefix(library))

  def should_stop() -> int:
    """Called before each step; ends the run after the first."""
    nonlocal asked
    asked += 1
    if asked == 2:
      sys.setprofile(None)
      raise Done
    return 0

  sys.setprofile(trace)
  config = overrides.load(str(root / 'configs' / 'quickstart.py'))
  config.stages, config.loggers = ('distil',), ()
  config.distil.steps, config.distil.eval_every = 2, 0
  config.eval.prompts, config.eval.samples = 8, 0
  built = build.build(config)
  run = built.run._replace(should_stop=should_stop)
  with tempfile.TemporaryDirectory() as folder, contextlib.suppress(Done):
    pipeline.train(run, built.stages, built.params, pathlib.Path(folder))
  return {'config to step': sorted(seen), 'step': sorted(step)}


def main() -> None:
  """Runs the benchmark."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  here = pathlib.Path(__file__).resolve().parents[1]
  parser.add_argument('--root', type=pathlib.Path, default=here)
  parser.add_argument('--no-step', action='store_true', help='count files only')
  parser.add_argument('--files', action='store_true', help='list the files')
  parser.add_argument('--trace', action='store_true', help=argparse.SUPPRESS)
  args = parser.parse_args()
  root = args.root.resolve()
  if args.trace:
    print(json.dumps(called_in_a_step(root)))
    return
  table = count(root)
  if not args.no_step:
    environment = {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(root)}
    done = subprocess.run(
      [sys.executable, __file__, '--trace', f'--root={root}'],
      env=os.environ | environment,
      stdout=subprocess.PIPE,
      text=True,
      check=True,
    )
    for name, files in json.loads(done.stdout.splitlines()[-1]).items():
      table[f'files called, {name}'] = len(files)
      if args.files:
        print(f'{name}:', *files, sep='\n  ')
  print('| | |\n|---|---|')
  for name, value in table.items():
    print(f'| {name} | {value} |')


if __name__ == '__main__':
  main()
