"""Nothing that a model, a data row or a folder brings is ever run as code."""

import ast
import pathlib

import pytest

from jopd.data.prompts import encode_prompt, turn_end
from jopd.data.tokenizer import builtin_tokenizer

ROOT = pathlib.Path(__file__).parents[2]
FILES = sorted((ROOT / 'jopd').rglob('*.py'))
MODULES = {'pickle', 'cPickle', '_pickle', 'marshal', 'shelve', 'dill'}
MODULES |= {'cloudpickle', 'joblib', 'torch', 'code', 'codeop', 'runpy'}
CALLS = {'eval', 'exec', 'compile', '__import__', 'execfile'}
METHODS = {'exec_module', 'system', 'popen'}
# What may: a config and a function of one's own are Python files that a user
# names; math_match talks to its child through pipes; `eval` is a command.
ALLOWED = {
  ('run/resolve.py', 'exec_module'),
  ('rewards/math.py', 'subprocess'),
}


def found(source):
  """What of a file could run, or unpack, what it was given."""
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      yield from (a.name.partition('.')[0] for a in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield (node.module or '').partition('.')[0]
      yield from (f'{node.module}.{a.name}' for a in node.names)
    elif isinstance(node, ast.Call):
      name = getattr(node.func, 'id', getattr(node.func, 'attr', ''))
      bare = isinstance(node.func, ast.Name)
      if (bare and name in CALLS) or (not bare and name in METHODS):
        yield name
      for word in node.keywords:
        truth = getattr(word.value, 'value', True) is not False
        if word.arg in ('allow_pickle', 'trust_remote_code', 'shell') and truth:
          yield word.arg
      if name == 'load' and getattr(node.func, 'value', None) is not None:
        owner = ast.unparse(node.func.value)
        if owner in ('np', 'numpy', 'jnp', 'torch', 'pickle'):
          yield f'{owner}.load'


BANNED = MODULES | CALLS | METHODS | {'subprocess'}
BANNED |= {'allow_pickle', 'trust_remote_code', 'shell'}
BANNED |= {'np.load', 'numpy.load', 'jnp.load', 'torch.load', 'pickle.load'}


def test_no_file_unpickles_or_runs_what_it_reads():
  wrong = set()
  for file in FILES:
    name = file.relative_to(ROOT / 'jopd').as_posix()
    wrong |= {
      (name, what) for what in found(file.read_text()) if what in BANNED
    }
  assert wrong == ALLOWED


@pytest.mark.parametrize(
  'line',
  [
    'import pickle',
    'from pickle import loads',
    'import torch.serialization',
    'x = np.load(path)',
    'x = load(path, allow_pickle=True)',
    'x = load(path, allow_pickle=flag)',
    'm = f(folder, trust_remote_code=True)',
    'm = f(folder, trust_remote_code=kwargs)',
    'eval(text)',
    "__import__('os')",
    'os.system(text)',
    'spec.loader.exec_module(module)',
  ],
)
def test_the_walk_would_find_it(line):
  # Kills: a walk that is green because it sees nothing.
  assert set(found(line)) & BANNED


TURNS = [{'role': 'user', 'content': 'Hi'}]


@pytest.mark.parametrize(
  'template',
  [
    # KernelConfig from a template into Python.
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__init__.__globals__['os'] }}",
    "{{ ''['__cla' + 'ss__'] }}{{ ''|attr('__class__') }}{{ 1 / 0 }}",
    "{{ cycler.__init__.__globals__.os.mkdir('{path}') }}",
    "{{ raise_exception.__globals__['__builtins__'] }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}{{ 1 / 0 }}",
    # Files, and what is not a template.
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os }}",
    "{% extends '/etc/passwd' %}",
    "{{ open('/etc/passwd').read() }}",
    '{% for %}',
    '{{ undefined.field }}',
    "{{ messages + 'x' }}",
    '{{ range(10**9) | length }}',
    # A change to the row that is rendered.
    "{{ messages.append('x') }}",
    "{{ messages[0].update({'role': 'system'}) }}",
    '{{ raise_exception("no") }}',
  ],
)
def test_a_template_that_leaves_its_sandbox_is_refused(template, tmp_path):
  # Kills: an exception other than the one that a bad row is known by, which
  # would end the run, and a template that is run outside of the sandbox.
  tokenizer = builtin_tokenizer()
  path = tmp_path / 'ran'
  tokenizer.chat_template = template.replace('{path}', str(path))
  for act in (
    lambda: encode_prompt(tokenizer, TURNS),
    lambda: turn_end(tokenizer),
  ):
    with pytest.raises(ValueError, match='the chat template refuses') as error:
      act()
    assert '\n' not in str(error.value) and 'root:' not in str(error.value)
  assert TURNS == [{'role': 'user', 'content': 'Hi'}] and not path.exists()
