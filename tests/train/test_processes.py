"""Two processes on loopback learn what one process learns."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from jopd.models import hf
from jopd.run import build, overrides
from jopd.train import pipeline

TINY = pathlib.Path(__file__).parents[1] / 'tiny.py'
# One stage: its programs are what starting a process costs.
SETTINGS = [
  "--config.stages=('distil',)",
  '--config.distil.num_minibatches=2',
  '--config.distil.group_size=2',
  '--config.distil.steps=3',
  '--config.checkpoint.every=1',
]
# After some update a process gets a signal: it ends at once, as a host does
# that is taken away, or it is asked to end.
WORKER = """
import os, signal, sys
from jopd.cli.main import run
from jopd.train import loop
update, number, *arguments = sys.argv[1:]
update_step = loop.update_step
def update_and_signal(*arguments):
  state, metrics = update_step(*arguments)
  if int(state.step) == int(update):
    os.kill(os.getpid(), int(number))
  return state, metrics
loop.update_step = update_and_signal
run(arguments)
"""


def start(workdir, *, update=-1, number=0, options=((), ())):
  """Two processes of one run: their exit codes and their standard errors.

  The second one gets the signal of that number after that update.
  """
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  flags = os.environ['XLA_FLAGS'].replace('device_count=8', 'device_count=4')
  run = ['train', f'--config={TINY}', f'--workdir={workdir}', *SETTINGS]
  run += [f'--coordinator={address}', '--processes=2']
  workers = [
    subprocess.Popen(
      [
        *(sys.executable, '-c', WORKER),
        *(str(update if i else -1), str(int(number))),
        *(*run, f'--process={i}', *options[i]),
      ],
      env=os.environ | {'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in (0, 1)
  ]
  try:
    outputs = [worker.communicate(timeout=290) for worker in workers]
  finally:
    for worker in workers:
      worker.kill()
  return [w.returncode for w in workers], [err for _, err in outputs]


@pytest.fixture(scope='module')
def two(tmp_path_factory):
  """The workdir of a run of two processes that nothing disturbed."""
  workdir = tmp_path_factory.mktemp('processes') / 'two'
  codes, errors = start(workdir)
  assert codes == [0, 0], errors
  return workdir


# Kills: rows that reach the wrong host, keys that depend on the process,
# metrics of one host's rows only, two writers of one file, updates that take
# other prompts than those of one process.
@pytest.mark.timeout(600)
def test_two_processes_learn_what_one_learns(two, tmp_path):
  built = build.build(overrides.load(str(TINY), SETTINGS))
  one = pipeline.train(built.run, built.stages, built.params, tmp_path / 'one')
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5),
    hf.load(two / 'distil' / 'model')[1],
    hf.load(one['model'])[1],
  )
  rows = [
    [json.loads(line) for line in path.read_text().splitlines()]
    for path in (
      two / 'metrics.jsonl',
      tmp_path / 'one' / 'metrics.jsonl',
    )
  ]
  for a, b in zip(*rows, strict=True):
    assert a.keys() == b.keys()
    for name in ('response_length', 'greedy_accuracy', 'reverse_kl', 'loss'):
      assert np.isclose(a.get(name, 0), b.get(name, 0), atol=1e-5), (name, a, b)


# One is asked to end in step 2 of 3, then it is killed in step 3. Kills: a
# process that waits for ever for one that has gone, processes that stop at
# different steps, an end without a word, and rows or parameters of a resumed
# run that differ by a bit.
@pytest.mark.slow  # three more starts of two processes
@pytest.mark.timeout(900)
def test_a_process_that_ends_early_ends_the_other_and_the_run_resumes(
  two, tmp_path
):
  codes, errors = start(tmp_path, update=3, number=signal.SIGTERM)
  assert codes == [143, 143], errors
  assert all('SIGTERM: distil is saved at step 2' in text for text in errors)
  codes, errors = start(tmp_path, update=5, number=signal.SIGKILL)
  # What notices first: the next exchange, or the heartbeat, for which JAX ends
  # the process itself.
  assert codes[1] == -signal.SIGKILL
  assert codes[0] in (1, 2, -signal.SIGABRT)
  ours = 'jopd: this was process 0 of 2; if another one ended'
  assert ours in errors[0] or 'another task died' in errors[0]
  assert not (tmp_path / 'distil' / 'result.json').exists()
  codes, errors = start(tmp_path)
  assert codes == [0, 0], errors
  assert 'distil: resumed at step 2' in errors[0]
  read = lambda folder: (folder / 'metrics.jsonl').read_bytes()
  assert read(tmp_path) == read(two)
  hashes = [
    json.loads((folder / 'summary.json').read_text())['params_sha256']
    for folder in (tmp_path, two)
  ]
  assert hashes[0] == hashes[1]


# Kills: hosts that train on other data than each other, or hang.
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_processes_that_disagree_are_refused_by_name(tmp_path):
  workdir = tmp_path / 'run'
  codes, errors = start(workdir, options=((), ('--config.seed=7',)))
  assert codes == [2, 2]
  for text in errors:
    assert 'process 1 has another config.seed than process 0' in text
  assert not workdir.exists()
