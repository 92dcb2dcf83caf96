"""Kill -9 at some moments: the run ends with the bytes of a quiet one."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

KILLS = pathlib.Path(__file__).parents[2] / 'benchmarks' / 'kills.py'


# Kills: half a checkpoint that is restored, an old one that goes before the new
# one is safe, a stage that counts as finished before it is, half a row of a
# log, and rows that are logged twice.
@pytest.mark.timeout(900)
@pytest.mark.parametrize('kills', [2, pytest.param(12, marks=pytest.mark.slow)])
def test_a_killed_run_ends_with_the_same_bytes(tmp_path, kills):
  done = subprocess.run(
    [sys.executable, str(KILLS), f'--kills={kills}', f'--out={tmp_path}'],
    env=os.environ | {'XLA_FLAGS': '--xla_backend_optimization_level=0'},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  result = json.loads(done.stdout.splitlines()[-1])
  assert result['kills'] >= kills and result['lost'] == 0
