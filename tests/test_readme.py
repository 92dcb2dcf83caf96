"""The README's examples train, as a reader has them."""

import json
import pathlib
import re
import types

import jax
import pytest
import tiny

from jopd.cli import train
from jopd.run.overrides import load

README = pathlib.Path(__file__).parents[1] / 'README.md'
SMALL = [
  *('--config.distil.steps=2', '--config.distil.batch_size=8'),
  *('--config.max_response_tokens=8', '--config.max_prompt_tokens=32'),
  *('--config.eval.prompts=8', '--config.eval.samples=0'),
  *('--config.eval.batch_size=8', '--config.loggers=()'),
  '--config.distil.learning_rate=1e-3',
]


def block(beginning):
  """The Python block of the README that begins so."""
  blocks = re.findall(r'^```python\n(.*?)^```', README.read_text(), re.M | re.S)
  [example] = [b for b in blocks if b.startswith(beginning)]
  return example


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """A folder with the models and the data that the README's config names."""
  monkeypatch.chdir(tmp_path)
  for seed, name in enumerate(('Qwen3-4B', 'Qwen3-0.6B')):
    tiny.save_model(tmp_path / 'Qwen' / name, seed=seed)
  for name in ('train.jsonl', 'test.jsonl'):
    rows = [{'prompt': f'{i % 7} 1', 'answer': str(i % 10)} for i in range(32)]
    (tmp_path / name).write_text('\n'.join(map(json.dumps, rows)))
  (tmp_path / 'mine.py').write_text(block('from jopd import losses'))
  return tmp_path


# Kills functions of a reader's own that a config cannot name, whose settings
# cannot be overridden, whose parts are not logged, or that stop a resumption.
def test_a_config_with_own_functions_trains_and_goes_on(folder):
  power = '--config.distil.loss.match.weight.power=1.0'
  config = load('mine.py', [*SMALL, power])
  assert config.distil.loss.match.weight.power == 1.0
  train.run(config, folder / 'runs')
  log = (folder / 'runs/metrics.jsonl').read_text().splitlines()
  rows = map(json.loads, log)
  steps = [row for row in rows if row['kind'] == 'train']
  assert [row['step'] for row in steps] == [1, 2]
  assert all('reward/right' in row and 'reward/length' in row for row in steps)
  saved = json.loads((folder / 'runs/config.json').read_text())
  assert saved['reward']['name'].endswith('mine.py:right_and_short')

  # The same from Python, which finds the stage finished.
  module = types.ModuleType('example')
  module.get_config = lambda: load('mine.py', [*SMALL, power])
  with jax.numpy_rank_promotion('allow'):
    exec(block('from jopd.run import build'), vars(module))
  assert 0 <= module.summary['student_after'] <= 1


def test_losses_in_own_code():
  module = types.ModuleType('example')
  with jax.numpy_rank_promotion('allow'):
    exec(block('import jax\n'), vars(module))
  assert module.grad.shape == (4, 8, 100) and module.loss > 0
