"""Metrics: pairs add up, the log survives crashes, the clock adds up."""

import json
import math
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jopd.train import metrics
from jopd.train.errors import WrongInputError
from jopd.train.metrics import Clock, MetricsLog


def lines(folder, name='metrics.jsonl'):
  return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def places(folder):
  return [(row['stage'], row['step']) for row in lines(folder)]


def test_merged_means_weigh_by_count():
  # Kills: a mean of means, which would say (1 + 4) / 2 = 2.5.
  merged = metrics.merge({'a': (3.0, 3)}, {'a': (4.0, 1), 'b': (2.0, 4)})
  assert metrics.means(merged) == {'a': 7 / 4, 'b': 0.5}


def test_merge_works_under_jit_on_arrays():
  # Kills: host arithmetic that would force a value while tracing.
  pair = {'a': (jnp.float32(1.5), jnp.float32(2))}
  merged = jax.jit(metrics.merge)(pair, pair)
  assert metrics.means(merged) == {'a': 0.75}


def test_a_metric_that_counted_nothing_has_no_mean():
  # Kills: 0/0, as a division error or as a NaN that looks like a broken run.
  empty = {'a': (jnp.float32(0), jnp.int32(0)), 'b': (1.0, 2)}
  assert metrics.means(empty) == {'b': 0.5}
  assert math.isnan(metrics.means({'a': (jnp.float32('nan'), 1)})['a'])


def test_rows_are_on_disk_before_the_next_one(tmp_path):
  # Kills: buffering, which loses the rows before a crash.
  log = MetricsLog(tmp_path / 'new')
  log.write('opd', 1, 'train', {'loss': np.float32(0.5), 'n': 3})
  row = {'stage': 'opd', 'step': 1, 'kind': 'train', 'loss': 0.5, 'n': 3}
  assert lines(tmp_path / 'new') == [row]
  assert log.rows('opd') == [row] and log.rows('sft') == []


def test_lines_are_strict_json_and_read_back(tmp_path):
  # Kills: bare NaN, which JSON parsers other than Python's refuse.
  log = MetricsLog(tmp_path)
  values = {'a': math.nan, 'b': math.inf, 'c': jnp.float32(-math.inf)}
  log.write('opd', 1, 'train', values)

  def refuse(constant):
    raise AssertionError(f'{constant} is not JSON')

  text = (tmp_path / 'metrics.jsonl').read_text()
  row = json.loads(text, parse_constant=refuse)
  assert [row[name] for name in 'abc'] == ['nan', 'inf', '-inf']
  assert np.array_equal(
    [log.rows('opd')[0][name] for name in 'abc'],
    [math.nan, math.inf, -math.inf],
    equal_nan=True,
  )


@pytest.mark.parametrize(
  'values, message',
  [
    ({'loss': np.ones(2)}, "'loss' must be a string or one number"),
    ({'step': 3}, "may not be named ['step']"),
  ],
)
def test_a_row_that_cannot_be_read_is_not_written(tmp_path, values, message):
  # Kills: half a line on disk before the error.
  log = MetricsLog(tmp_path)
  with pytest.raises(ValueError) as error:
    log.write('opd', 1, 'train', values)
  assert message in str(error.value)
  assert lines(tmp_path) == []


def test_rewind_drops_later_steps_and_later_stages(tmp_path):
  # Kills: dropping by step alone, which would keep ('rl', 1) and lose
  # ('sft', 3); dropping step 2 itself, which the checkpoint contains.
  log = MetricsLog(tmp_path)
  for stage in ('sft', 'opd', 'rl'):
    for step in (1, 2, 3):
      log.write(stage, step, 'train', {'x': 1.0})
  before = (tmp_path / 'metrics.jsonl').read_bytes().splitlines(True)
  log.rewind('opd', 2)
  kept = [('sft', 1), ('sft', 2), ('sft', 3), ('opd', 1), ('opd', 2)]
  assert places(tmp_path) == kept
  assert (tmp_path / 'metrics.jsonl').read_bytes() == b''.join(before[:5])
  log.write('opd', 3, 'train', {'x': 2.0})
  assert places(tmp_path) == [*kept, ('opd', 3)]
  log.rewind('opd', -1)
  assert places(tmp_path) == kept[:3]
  log.rewind('rl', 7)  # a stage that has written nothing yet
  assert places(tmp_path) == kept[:3]


def test_a_resumed_log_has_the_bytes_of_an_uninterrupted_one(tmp_path):
  # Kills: a torn line glued to the next row; steps 3 and 4 written twice.
  def train(folder, start, stop):
    log = MetricsLog(folder)
    log.rewind('opd', start)
    for step in range(start + 1, stop + 1):
      log.write('opd', step, 'train', {'x': step / 7})
    log.close()

  train(tmp_path / 'whole', 0, 6)
  whole = (tmp_path / 'whole/metrics.jsonl').read_bytes()
  for cut in range(0, len(whole), 7):
    torn = tmp_path / 'torn'
    torn.mkdir(exist_ok=True)
    (torn / 'metrics.jsonl').write_bytes(whole[:cut])
    saved = min(2, whole[:cut].count(b'\n'))  # the checkpoint's step
    train(torn, saved, 6)
    assert (torn / 'metrics.jsonl').read_bytes() == whole


def test_a_crash_while_rewinding_leaves_the_old_file(tmp_path, monkeypatch):
  # Kills: truncating in place.
  log = MetricsLog(tmp_path)
  for step in (1, 2):
    log.write('opd', step, 'train', {})

  def crash(*_):
    raise OSError('power cut')

  monkeypatch.setattr(metrics.os, 'replace', crash)
  with pytest.raises(OSError, match='power cut'):
    log.rewind('opd', 1)
  assert places(tmp_path) == [('opd', 1), ('opd', 2)]


def test_a_broken_line_is_named_not_dropped(tmp_path):
  # Kills: a reader that skips what it does not understand.
  (tmp_path / 'metrics.jsonl').write_text('{"stage": "a", "step": 1}\nnot\n')
  with pytest.raises(WrongInputError, match=r'metrics.jsonl:2: expected a'):
    MetricsLog(tmp_path)


def test_hosts_write_files_of_their_own(tmp_path, monkeypatch):
  # Kills: two hosts that append to one file on a shared disk.
  first = MetricsLog(tmp_path)
  monkeypatch.setattr(jax, 'process_index', lambda: 1)
  second = MetricsLog(tmp_path)
  timings = MetricsLog(tmp_path, 'timings')
  for value, log in enumerate((first, second, timings)):
    log.write('opd', 1, 'train', {'x': value})
  assert [row['x'] for row in lines(tmp_path)] == [0]
  assert [row['x'] for row in lines(tmp_path, 'metrics.host1.jsonl')] == [1]
  assert [row['x'] for row in lines(tmp_path, 'timings.host1.jsonl')] == [2]


def test_clock_charges_each_second_once(monkeypatch):
  # Kills: counting the save inside eval twice (5 + 2 > the 5 that passed).
  now = iter([0, 1, 3, 5, 10, 14]).__next__
  monkeypatch.setattr(time, 'perf_counter', now)
  clock = Clock()
  with clock('eval'):  # 0 to 5
    with clock('save'):  # 1 to 3
      pass
  with clock('save'):  # 10 to 14
    pass
  assert clock.seconds == {'eval': 3, 'save': 6}
  assert clock.snapshot() == {'seconds/eval': 3, 'seconds/save': 6}
  assert clock.seconds == {} and clock.snapshot() == {}


def test_clock_counts_a_phase_that_failed():
  # Kills: a clock that forgets the time when the phase raises.
  clock = Clock()
  with pytest.raises(KeyError), clock('rollout'):
    raise KeyError
  assert clock.seconds['rollout'] >= 0


def _fill(monkeypatch, room):
  """A disk with room for some bytes; returns how to change it."""
  left, opened = [room], pathlib.Path.open

  class Writer:
    def __init__(self, file):
      self._file = file

    def __enter__(self):
      return self

    def __exit__(self, *error):
      self._file.close()

    def write(self, content):
      # As a disk does it: a part is written before there is no more room.
      self._file.write(content[: left[0]])
      left[0] -= len(content)
      if left[0] < 0:
        left[0] = 0
        raise OSError(28, 'No space left on device')

  def open_(path, mode='r', *args, **options):
    file = opened(path, mode, *args, **options)
    return Writer(file) if mode == 'ab' else file

  monkeypatch.setattr(pathlib.Path, 'open', open_)
  return lambda room: left.__setitem__(0, room)


# Kills: half a row that stays, rows out of order, rows that are lost or written
# twice, an end of training, and a line of complaint for each row.
def test_rows_wait_while_the_disk_is_full(tmp_path, monkeypatch, caplog):
  log = MetricsLog(tmp_path)
  path = tmp_path / 'metrics.jsonl'
  log.write('warm', 1, 'train', {'loss': 1.0})
  first = path.read_bytes()
  make_room = _fill(monkeypatch, 20)
  for step in (2, 3):
    log.write('warm', step, 'train', {'loss': 1.0})
    assert path.read_bytes() == first
  assert [row['step'] for row in log.rows('warm')] == [1, 2, 3]
  assert sum('the disk is full' in line for line in caplog.messages) == 1
  make_room(1000)
  log.sync()
  for step in (4, 5):
    log.write('warm', step, 'train', {'loss': 1.0})
  lines = [first.replace(b'1,', b'%d,' % step, 1) for step in range(1, 6)]
  assert path.read_bytes() == b''.join(lines)
  make_room(0)
  log.write('warm', 6, 'train', {'loss': 1.0})
  log.close()
  assert f'{path}: 1 rows found no room' in caplog.messages[-1]


# Kills: a mistake of the path, or a disk that fails, taken for a full one.
def test_other_errors_of_a_log_are_not_hidden(tmp_path):
  log = MetricsLog(tmp_path)
  (tmp_path / 'metrics.jsonl').unlink()
  with pytest.raises(FileNotFoundError):
    log.write('warm', 1, 'train', {'loss': 1.0})
