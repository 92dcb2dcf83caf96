"""The examples in the docstrings are right."""

import doctest
import importlib
import pathlib
import pkgutil
import re

import jax
import pytest

from jopd import losses, papers

MODULES = [
  module.name
  for room in (losses, papers)
  for module in pkgutil.walk_packages(room.__path__, room.__name__ + '.')
]


# Kills an example that was typed rather than run.
@pytest.mark.parametrize('name', MODULES)
def test_examples_print_what_they_say(name):
  module = importlib.import_module(name)
  results = doctest.testmod(module, raise_on_error=False)
  assert results.failed == 0


# Kills a public name that nobody can look up.
def test_every_public_name_is_documented():
  for name in losses.__all__:
    assert getattr(losses, name).__doc__, name


# Kills examples on the page that no longer run, and one that does not learn.
def test_the_examples_of_the_page_run_and_learn():
  page = pathlib.Path(__file__).parents[2] / 'docs' / 'losses.md'
  examples = re.findall(r'```python\n(.*?)```', page.read_text(), re.DOTALL)
  names = {'losses': losses}
  for code in examples:
    exec(code, names)
  assert losses.term_reads(
    losses.Term(losses.negative_log_likelihood(), weight=names['certain'])
  ) == losses.Reads('token', reward=False, sampler=False)
  mask = names['token'] >= 0
  untrained, _, _ = names['step'](
    names['init'](jax.random.key(0)),
    names['teacher_params'],
    names['token'],
    mask,
  )
  assert names['value'] < 0.5 * untrained
