"""Signals to real processes: the first is noted, the second ends them."""

import os
import pathlib
import signal
import subprocess
import sys
import threading

import pytest

from jopd.cli import signals
from jopd.train.errors import Stopped, is_disk_full

TINY = pathlib.Path(__file__).parents[1] / 'tiny.py'
# Says when it may be asked; then is inside one call for ever, as a compiled
# program is: no handler of Python's can run, but other threads can. A mutex
# that is locked twice, since a signal would end a sleep.
CHILD = """
import ctypes, logging, sys
from jopd.cli import signals
logging.basicConfig(format='%(message)s', level='INFO', stream=sys.stdout)
with signals.stop_requested():
  print('ready', flush=True)
  libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
  libc.pthread_mutex_lock(mutex), libc.pthread_mutex_lock(mutex)
"""


def _asked(number):
  os.kill(os.getpid(), number)
  # Both the handler and the thread that listens.
  for _ in range(1000):
    yield
    threading.Event().wait(0.01)


@pytest.mark.parametrize('number', signals.SIGNALS)
def test_the_first_signal_is_noted(number, caplog):
  caplog.set_level('INFO', 'jopd.cli.signals')
  before = signal.getsignal(number)
  with signals.stop_requested() as stop:
    assert stop() == 0
    for _ in _asked(number):
      if stop():
        break
    assert stop() == number
  [line] = caplog.messages
  assert line.startswith(f'{number.name}: finishing')
  # Kills: handlers that stay when the run has ended.
  assert signal.getsignal(number) is before
  assert signal.set_wakeup_fd(-1) == -1


# Kills: a handler of Python's alone, which a compiled call holds up for ever.
@pytest.mark.parametrize('second', signals.SIGNALS)
def test_the_second_signal_ends_the_process_at_once(second):
  child = subprocess.Popen(
    [sys.executable, '-c', CHILD], stdout=subprocess.PIPE, text=True
  )
  try:
    assert child.stdout.readline() == 'ready\n'
    child.send_signal(signal.SIGTERM)
    assert child.stdout.readline().startswith('SIGTERM: finishing this step')
    child.send_signal(second)
    assert child.wait(timeout=60) == 128 + second
  finally:
    child.kill()
    child.stdout.close()


def test_a_stop_exits_as_shells_expect():
  assert Stopped(signal.SIGTERM, 'x').exit_code == 143
  assert str(Stopped(signal.SIGINT, 'warm is saved')) == 'SIGINT: warm is saved'


# Kills: a full disk that a library hid behind an error of its own.
def test_a_full_disk_is_known_by_its_number_or_its_text():
  full = OSError(28, 'No space left on device')
  assert is_disk_full(full) and is_disk_full(OSError(122, 'x'))
  assert is_disk_full(ValueError('I/O error: No space left on device'))
  try:
    try:
      raise full
    except OSError as error:
      raise RuntimeError('saving failed') from error
  except RuntimeError as error:
    assert is_disk_full(error)
  assert not is_disk_full(OSError(13, 'Permission denied'))
  assert not is_disk_full(None)


# Kills: a step that is given up, an end without a checkpoint, one that scripts
# take for the end of the run, and a signal that only this process hears of.
@pytest.mark.timeout(600)
def test_ctrl_c_finishes_the_step_and_saves(tmp_path):
  child = subprocess.Popen(
    [
      *(sys.executable, '-c', 'from jopd.cli.main import run; run()', 'train'),
      *(f'--config={TINY}', f'--workdir={tmp_path}'),
      '--config.warm.steps=100000',
    ],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  rows = lambda: (tmp_path / 'metrics.jsonl').read_text().count('"train"')
  try:
    while not (tmp_path / 'metrics.jsonl').exists() or not rows():
      assert child.poll() is None
      threading.Event().wait(0.05)
    child.send_signal(signal.SIGINT)
    out, said = child.communicate(timeout=300)
  finally:
    child.kill()
  assert (child.returncode, out) == (130, '')
  assert 'SIGINT: finishing this step, then saving' in said
  assert f'jopd train: SIGINT: warm is saved at step {rows()}' in said
  assert (tmp_path / 'warm' / 'checkpoints' / str(rows())).is_dir()
