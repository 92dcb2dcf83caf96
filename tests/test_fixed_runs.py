"""Configs mean what they meant when tests/fixed_runs.json was recorded."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SCRIPT = ROOT / 'benchmarks' / 'fixed_runs.py'

# Kind of method -> a config of it.
KINDS = {
  'full KL': 'variants/kl_mixing',
  'top-K': 'many_faces/opd',
  'sampled token': 'revisiting/sampled_token',
  'GRPO': 'many_faces/rlvr_teacher',
  'self-distillation with a context': 'many_faces/opsd_rule',
  'moving teacher, context of the group': 'variants/sdpo',
  'several response sources': 'variants/brts',
  'replay': 'variants/replay_buffer',
}


# Kills: a default of a setting that changed, a loss of another scale or mask, a
# random stream or an order of rows that moved, a schedule that is one step off,
# stale log-probs of the sampler, a context that is lost. Recorded on one core;
# another machine may round differently, hence not the script's 1e-5.
@pytest.mark.slow
@pytest.mark.parametrize('name', KINDS.values(), ids=KINDS)
def test_a_short_run_has_the_recorded_losses(name, tmp_path):
  # Eight fake devices, which the tests of this process have, sum differently.
  kept = ('PATH', 'HOME', 'LD_LIBRARY_PATH', 'JAX_COMPILATION_CACHE_DIR')
  environment = {key: os.environ[key] for key in kept if key in os.environ}
  done = subprocess.run(
    [sys.executable, str(SCRIPT), '--tolerance=1e-4', name],
    env=environment | dict(JAX_PLATFORMS='cpu', PYTHONPATH=str(ROOT)),
    cwd=tmp_path,
    capture_output=True,
    text=True,
    timeout=280,
  )
  assert done.returncode == 0, done.stdout + done.stderr[-2000:]
