"""The house is built as its plan says, and its pages tell the truth."""

import ast
import pathlib
import re
import types

import jax
import pytest

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted((ROOT / 'jopd').rglob('*.py'))
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]

# A room is a folder of jopd/ or a file at its top. Rooms of one set share a
# floor and do not know each other.
FLOORS = (
  {'losses', 'models', 'sharding', 'data', 'rewards'}
  | {'statistics', 'config', 'programs', 'exits', 'signals'},
  {'rollout', 'hosts', 'overrides', 'schedules', 'members'},
  {'train', 'evaluate', 'diagnose', 'answer'},
  {'recipe', 'optimizers', 'checks', 'tokens'},
  {'feedback', 'reading'},
  {'stages'},
  {'build'},
  {'doctor', 'plan'},
  {'commands'},
  {'main'},
)
FLOOR_OF = {room: n for n, rooms in enumerate(FLOORS) for room in rooms}
# The package itself has a name and a version, and imports nothing.
FLOOR_OF['__init__'] = -1


def name_of(file):
  return file.relative_to(ROOT).as_posix()


def room_of(file):
  return file.relative_to(ROOT / 'jopd').with_suffix('').parts[0]


def imported_rooms(file):
  """(line, room) of every import of jopd, also those inside functions."""
  for node in ast.walk(ast.parse(file.read_text())):
    modules = []
    if isinstance(node, ast.Import):
      modules = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{name_of(file)}:{node.lineno}: relative import'
      modules = [f'{node.module}.{alias.name}' for alias in node.names]
    for module in modules:
      package, room, *_ = [*module.split('.'), '__init__']
      if package == 'jopd':
        yield node.lineno, '__init__' if room == '__version__' else room


# Kills an import upwards or sideways, and a new room that has no floor.
@pytest.mark.parametrize('file', FILES, ids=name_of)
def test_imports_go_down_or_stay_in_the_room(file):
  here = room_of(file)
  assert here in FLOOR_OF, f'{here} has no floor; add it to FLOORS'
  wrong = [
    f'{name_of(file)}:{line}: {here} imports {there}'
    for line, there in imported_rooms(file)
    if there != here and not FLOOR_OF[there] < FLOOR_OF[here]
  ]
  assert wrong == []


# Kills a plan that is not of this house: a file added, moved or renamed.
def test_every_file_is_on_the_plan():
  plan = (ROOT / 'docs' / 'architecture.md').read_text()
  named = set(re.findall(r'[\w/]+\.py', plan))
  built = {
    file.relative_to(ROOT / 'jopd').as_posix()
    for file in FILES
    if file.name != '__init__.py'
  }
  assert sorted(built - named) == []
  gone = {
    name
    for name in named - built
    if not (ROOT / name).is_file() and not (ROOT / 'jopd' / name).is_file()
  }
  assert sorted(gone) == []


def code_lines(function, source):
  """Lines of a function that hold code: no docstring, comment or blank."""
  first = function.body[0]
  start = first.lineno
  if ast.get_docstring(function) is not None:
    start = first.end_lineno + 1
  lines = source.splitlines()[start - 1 : function.end_lineno]
  code = [line for line in lines if line.strip() and line.strip()[0] != '#']
  return len(code) + 1  # the signature, however long, is one


# Kills a file nobody reads to its end, and a function with no middle.
@pytest.mark.parametrize('file', FILES, ids=name_of)
def test_files_and_functions_stay_short(file):
  source = file.read_text()
  limit = 520 if room_of(file) == 'models' else 320
  assert len(source.splitlines()) < limit
  kinds = ast.FunctionDef | ast.AsyncFunctionDef
  functions = [n for n in ast.walk(ast.parse(source)) if isinstance(n, kinds)]
  long = {f.name: code_lines(f, source) for f in functions}
  assert {name: n for name, n in long.items() if n >= 70} == {}


def python_blocks(page):
  """The Python blocks that begin with an import; a fragment does not."""
  blocks = re.findall(r'^```python\n(.*?)^```', page.read_text(), re.M | re.S)
  return [b for b in blocks if re.match(r'import |from |"""', b)]


# Kills an example that was typed rather than run.
@pytest.mark.parametrize('page', PAGES, ids=name_of)
def test_examples_of_the_pages_run(page):
  # A module of its own, as an example is; the blocks of a page follow one
  # another. Examples must run as the reader has it: no strict settings.
  module = types.ModuleType('example')
  with jax.numpy_rank_promotion('allow'):
    for block in python_blocks(page):
      exec(compile(block, name_of(page), 'exec'), vars(module))
    # Tests on a page are tests.
    for name, test in list(vars(module).items()):
      if name.startswith('test_'):
        test()
    if 'get_config' in vars(module):
      assert module.get_config().stages


# Kills a link to a page, a file or a heading that is not there.
@pytest.mark.parametrize('page', PAGES, ids=name_of)
def test_links_lead_somewhere(page):
  links = re.findall(r'\]\(([^)]+)\)', page.read_text())
  local = [link for link in links if '://' not in link]
  missing = []
  for link in local:
    path, _, heading = link.partition('#')
    target = (page.parent / path) if path else page
    if not target.exists():
      missing.append(link)
    elif heading and heading not in headings(target):
      missing.append(link)
  assert missing == []


def headings(page):
  """The anchors of a page, as GitHub makes them."""
  titles = re.findall(r'^#+ (.*)$', page.read_text(), re.M)
  return {
    re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in titles
  }


VENV = 'python3 -m venv .venv && .venv/bin/pip install -e'


# Kills a README whose first command needs a second that it does not tell.
@pytest.mark.parametrize(
  'command',
  [
    f'{VENV} . && .venv/bin/jopd train --config=configs/quickstart.py'
    ' --workdir=runs/quickstart',
    f"{VENV} '.[test]' && .venv/bin/python -m pytest -n auto",
  ],
)
def test_one_line_from_a_fresh_clone(command):
  assert command in (ROOT / 'README.md').read_text().splitlines()


# Kills a page that only works where it was written.
@pytest.mark.parametrize('page', PAGES, ids=name_of)
def test_pages_name_no_machine(page):
  assert not re.search(r'(?<![\w.])/(home|root|tmp|work)/', page.read_text())


def test_the_readme_can_be_read_in_one_sitting():
  assert len((ROOT / 'README.md').read_text().splitlines()) <= 200
