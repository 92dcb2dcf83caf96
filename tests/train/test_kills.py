"""Kill -9 at a dozen moments: the run ends with the bytes of a quiet one."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

KILLS = pathlib.Path(__file__).parents[2] / 'benchmarks' / 'kills.py'


# Kills: half a checkpoint that is restored, an old one that goes before the new
# one is safe, a stage that counts as finished before it is, half a row of a
# log, and rows that are logged twice.
@pytest.mark.timeout(900)
def test_a_killed_run_ends_with_the_same_bytes(tmp_path):
  done = subprocess.run(
    [sys.executable, str(KILLS), '--kills=12', f'--out={tmp_path}'],
    env=os.environ | {'XLA_FLAGS': ''},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  found = json.loads(done.stdout.splitlines()[-1])
  assert found['kills'] >= 12 and found['lost'] == 0
