"""The examples in the docstrings are right."""

import doctest
import importlib
import pkgutil

import pytest

from jopd import losses

MODULES = [
  f'jopd.losses.{m.name}' for m in pkgutil.iter_modules(losses.__path__)
]


# Kills an example that was typed rather than run.
@pytest.mark.parametrize('name', MODULES)
def test_examples_print_what_they_say(name):
  module = importlib.import_module(name)
  results = doctest.testmod(module, raise_on_error=False)
  assert results.failed == 0


# Kills a public function without a contract.
def test_every_public_function_says_what_its_gradient_does():
  for name in losses.__all__:
    doc = getattr(losses, name).__doc__
    assert doc, name
