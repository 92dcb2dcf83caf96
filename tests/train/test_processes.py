"""Two processes on loopback learn what one process learns."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np

from jopd import build, config
from jopd.models import hf
from jopd.train import pipeline

TINY = pathlib.Path(__file__).parents[1] / 'tiny.py'
SETTINGS = ['--config.distil.updates=2', '--config.distil.group_size=2']
WORKER = """
import sys, jax
address, process, *arguments = sys.argv[1:]
jax.distributed.initialize(address, 2, int(process))
from jopd.main import run
run(arguments)
"""


def _start(address, process, workdir):
  flags = '--xla_force_host_platform_device_count=4'
  arguments = ['train', f'--config={TINY}', f'--workdir={workdir}', *SETTINGS]
  return subprocess.Popen(
    [sys.executable, '-c', WORKER, address, str(process), *arguments],
    env=os.environ | {'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


# Kills: rows that reach the wrong host, keys that depend on the process,
# metrics of one host's rows only, two writers of one file, updates that take
# other prompts than those of one process.
def test_two_processes_learn_what_one_learns(tmp_path):
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  workers = [_start(address, i, tmp_path / 'two') for i in (0, 1)]
  try:
    said = [worker.communicate(timeout=200) for worker in workers]
  finally:
    for worker in workers:
      worker.kill()
  assert [w.returncode for w in workers] == [0, 0], said
  two = json.loads((tmp_path / 'two' / 'summary.json').read_text())

  built = build.build(config.load(str(TINY), SETTINGS), say=lambda line: None)
  one = pipeline.train(built.run, built.stages, built.params, tmp_path / 'one')
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5),
    hf.load(two['model'])[1],
    hf.load(one['model'])[1],
  )
  rows = [
    [json.loads(line) for line in path.read_text().splitlines()]
    for path in (
      tmp_path / 'two' / 'metrics.jsonl',
      tmp_path / 'one' / 'metrics.jsonl',
    )
  ]
  for a, b in zip(*rows, strict=True):
    assert a.keys() == b.keys()
    for name in ('response_length', 'greedy_accuracy', 'reverse_kl', 'loss'):
      assert np.isclose(a.get(name, 0), b.get(name, 0), atol=1e-5), (name, a, b)
