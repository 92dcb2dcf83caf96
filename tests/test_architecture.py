"""Imports go down, objects and functions stay small, pages are true."""

import ast
import pathlib
import re
import types

import jax
import pytest

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted((ROOT / 'jopd').rglob('*.py'))
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]

# A room is a folder of jopd/ or a file beside them. Rooms of one floor do not
# know each other.
FLOORS = (
  {'losses', 'models', 'data', 'rewards', 'sharding', 'compilation'},
  {'rollout'},
  {'train', 'evaluate'},
  {'papers', 'run'},
  {'doctor', 'plan', 'report'},
  {'cli'},
)
FLOOR_OF = {room: n for n, rooms in enumerate(FLOORS) for room in rooms}
# The package itself has a name and a version, and imports nothing.
FLOOR_OF['__init__'] = -1

# `DecoderConfig` has a field for each property of an architecture that decides
# the result of the forward pass: the fields of the families' config.json.
# `TokenStats` has four core arrays; the others are optional, one for each thing
# that can be measured of a token, and weights read them by name.
MANY_FIELDS = {'DecoderConfig', 'TokenStats'}


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


# Kills a subject that is put beside the rooms instead of into one.
def test_at_most_three_files_stand_beside_the_rooms():
  beside = {file.name for file in (ROOT / 'jopd').glob('*.py')}
  assert len(beside - {'__init__.py'}) <= 3, beside


def fields(node):
  """Names of the fields of a NamedTuple or dataclass, else none."""
  bases = [ast.unparse(base) for base in node.bases]
  decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
  if any('NamedTuple' in base for base in bases) or any(
    'dataclass' in decorator for decorator in decorators
  ):
    return [
      statement.target.id
      for statement in node.body
      if isinstance(statement, ast.AnnAssign)
    ]
  return []


# Kills an object that everything is put into, and that goes everywhere.
@pytest.mark.parametrize('file', FILES, ids=name_of)
def test_no_object_has_more_than_15_fields(file):
  classes = [
    node
    for node in ast.walk(ast.parse(file.read_text()))
    if isinstance(node, ast.ClassDef) and node.name not in MANY_FIELDS
  ]
  large = {c.name: len(fields(c)) for c in classes if len(fields(c)) > 15}
  assert large == {}


FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef


def code_lines(function, source):
  """Lines of a function that hold code: no docstring, comment or blank.

  A function inside counts by itself.
  """
  first = function.body[0]
  start = first.lineno
  if ast.get_docstring(function) is not None:
    start = first.end_lineno + 1
  inside = {
    line
    for inner in ast.walk(function)
    if isinstance(inner, FUNCTIONS) and inner is not function
    for line in range(inner.lineno, inner.end_lineno + 1)
  }
  code = [
    line
    for n, line in enumerate(source.splitlines(), 1)
    if start <= n <= function.end_lineno and n not in inside
    if line.strip() and line.strip()[0] != '#'
  ]
  return len(code) + 1  # the signature, however long, is one


# Kills a file of several subjects, and a function that should be several.
@pytest.mark.parametrize('file', FILES, ids=name_of)
def test_files_and_functions_have_a_bound(file):
  source = file.read_text()
  assert len(source.splitlines()) <= 700
  nodes = ast.walk(ast.parse(source))
  functions = [node for node in nodes if isinstance(node, FUNCTIONS)]
  lines = {f.name: code_lines(f, source) for f in functions}
  limits = {'run_stage': 120}  # the loop, which is read from top to bottom
  assert {f: n for f, n in lines.items() if n > limits.get(f, 90)} == {}


def python_blocks(page):
  """The Python blocks that begin with an import; a fragment does not."""
  blocks = re.findall(r'^```python\n(.*?)^```', page.read_text(), re.M | re.S)
  return [b for b in blocks if re.match(r'import |from |"""', b)]


# Kills an example that was typed rather than run. tests/test_readme.py runs
# those of the README, which train.
@pytest.mark.parametrize('page', PAGES[1:], ids=name_of)
def test_examples_of_the_pages_run(page, tmp_path, monkeypatch):
  # A module of its own, as an example is; the blocks of a page follow one
  # another. Examples must run as the reader has it: no strict settings.
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(ROOT / 'configs')
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
  missing = []
  for link in [link for link in links if '://' not in link]:
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


# Kills a page that speaks of a file of ours that was moved or deleted.
@pytest.mark.parametrize('page', PAGES, ids=name_of)
def test_files_that_pages_name_exist(page):
  roots = 'jopd|configs|tests|benchmarks|docs|launch'
  names = re.findall(rf'(?<![\w/])((?:{roots})/[\w/]+\.\w+)', page.read_text())
  made_up = {'configs/thinking.py'}  # a reader's own
  assert {n for n in names if not (ROOT / n).exists()} <= made_up


# Kills a page that only works where it was written.
@pytest.mark.parametrize('page', PAGES, ids=name_of)
def test_pages_name_no_machine(page):
  assert not re.search(r'(?<![\w.])/(home|root|tmp|work)/', page.read_text())


def test_the_readme_can_be_read_in_one_sitting():
  assert len((ROOT / 'README.md').read_text().splitlines()) <= 180
