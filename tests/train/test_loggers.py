"""Loggers: they show what is logged, and can do no harm."""

from functools import partial
import json
import sys
import threading
import types

import jax
import jax.numpy as jnp
import pytest

from jopd.train import loggers, metrics, pipeline
from jopd.train.loggers import BackgroundLogger
from jopd.train.metrics import MetricsLog


class Fake:
  """Keeps what it is told; waits for `gate` and then raises, if it is to."""

  def __init__(self, *, error=None, gate=None):
    self.told, self.error, self.gate = [], error, gate

  def write(self, row):
    self.told.append(row)
    if self.gate:
      self.gate.wait()
    if self.error:
      raise self.error

  def rewind(self, stage, step):
    self.told.append((stage, step))

  def close(self):
    self.told.append('close')


def shown(tmp_path, make=loggers.tensorboard, **writes):
  """A closed log whose logger was told to rewind and shown two rows."""
  log = MetricsLog(tmp_path, loggers={'it': make})
  log.rewind('sft', 4)
  log.write('sft', 5, 'train', {'loss': 0.5, 'note': 'text'})
  log.write('opd', 1, 'eval', {'model': 'teacher', 'accuracy': 0.25})
  log.close()


def test_tensorboard_shows_numbers_by_stage_and_hides_rewound_steps(
  tmp_path, monkeypatch
):
  # Kills: two models' accuracies on one curve; old points after a resume.
  seen = []

  class SummaryWriter:
    def __init__(self, folder, purge_step):
      self.place = (folder.rpartition('tensorboard/')[2], purge_step)

    def add_scalar(self, *scalar):
      seen.append((self.place, *scalar))

    def flush(self):
      pass

    def close(self):
      pass

  module = types.SimpleNamespace(SummaryWriter=SummaryWriter)
  monkeypatch.setitem(sys.modules, 'tensorboardX', module)
  shown(tmp_path)
  assert seen == [
    (('metrics/sft', 5), 'train/loss', 0.5, 5),
    (('metrics/opd', 0), 'eval/teacher/accuracy', 0.25, 1),
  ]


def test_tensorboard_files_are_real(tmp_path):
  # Kills: a call that the real tensorboardX does not have.
  pytest.importorskip('tensorboardX')
  shown(tmp_path)
  (events,) = (tmp_path / 'tensorboard/metrics/sft').iterdir()
  assert b'train/loss' in events.read_bytes()


def test_without_tensorboard_nothing_is_logged(tmp_path, monkeypatch, caplog):
  monkeypatch.setitem(sys.modules, 'tensorboardX', None)
  shown(tmp_path)
  assert caplog.messages == []


def test_wandb_has_a_run_for_each_stage(tmp_path, monkeypatch):
  # Kills: two stages, whose steps both start at 0, in one run.
  seen = []

  def init(*, dir, group, job_type, name, reinit):
    assert (dir, group, job_type) == (str(tmp_path), tmp_path.name, 'metrics')
    return types.SimpleNamespace(
      log=lambda values, step: seen.append((name.split()[1], values, step)),
      finish=lambda: seen.append('finish'),
    )

  monkeypatch.setitem(sys.modules, 'wandb', types.SimpleNamespace(init=init))
  shown(tmp_path, loggers.wandb)
  assert seen == [
    ('sft', {'train/loss': 0.5}, 5),
    ('opd', {'eval/teacher/accuracy': 0.25}, 1),
    'finish',
    'finish',
  ]


def test_a_logger_is_shown_everything_in_order():
  fake = Fake()
  logger = BackgroundLogger(lambda: fake, 'fake')
  logger.rewind('opd', 3)
  for step in range(50):
    logger.write({'step': step})
  logger.close()
  rows = [{'step': step} for step in range(50)]
  assert fake.told == [('opd', 3), *rows, 'close'] and logger.dropped == 0


@pytest.mark.parametrize('error', [OSError('disk full'), SystemExit(3)])
def test_a_logger_that_raises_is_logged_once(error, caplog):
  # Kills: a run that ends; a complaint at every step; a row that is shown to a
  # logger that is broken; rows that are lost without a word.
  fake = Fake(error=error)
  logger = BackgroundLogger(lambda: fake, 'fake')
  for step in range(5):
    logger.write({'step': step})
  logger.close()
  assert fake.told == [{'step': 0}] and logger.dropped == 5
  stopped, count = caplog.messages
  assert stopped == f'fake stopped ({error!r}); the run goes on.'
  assert count.startswith('fake was not shown 5 rows')


def test_a_logger_that_blocks_costs_neither_time_nor_memory(caplog):
  # Kills: a queue without an end; a run that waits for its logger for ever.
  gate = threading.Event()
  fake = Fake(gate=gate)
  options = dict(waiting=3, last=0.05)
  logger = BackgroundLogger(lambda: fake, 'fake', **options)
  for step in range(1000):
    logger.write({'step': step})
  logger.close()
  said = caplog.messages
  assert said[0] == 'fake is slower than the run: rows are dropped.'
  assert said[1] == 'fake does not answer: it is left behind.'
  # Of those it got, one is in its hands, and may still be shown.
  assert logger.dropped in (999, 1000)
  assert said[2].startswith(f'fake was not shown {logger.dropped} rows')
  gate.set()


def test_no_logger_changes_the_run(make_tiny, tmp_path, monkeypatch, caplog):
  # Kills: a logger within the loop, which ends it or delays it for ever.
  monkeypatch.setattr(
    metrics, 'BackgroundLogger', partial(BackgroundLogger, last=0.05)
  )
  gate = threading.Event()
  bad = {
    'raises': lambda *_: Fake(error=RuntimeError('no')),
    'blocks': lambda *_: Fake(gate=gate),
  }
  built = make_tiny(stages=('distil',), **{'distil.steps': 2})
  [stage] = built.stages
  start, ends = stage.prompts.batches.get_state(), []
  for kinds in ({}, bad):
    stage.prompts.batches.set_state(start)
    run = built.run._replace(loggers=kinds)
    params = jax.tree.map(jnp.copy, built.params)
    folder = tmp_path / str(len(kinds))
    summary = pipeline.train(run, [stage], params, folder)
    rows = (folder / 'metrics.jsonl').read_bytes()
    ends.append((summary['params_sha256'], rows))
  gate.set()
  assert ends[0] == ends[1]
  assert json.loads(ends[0][1].splitlines()[-1])['step'] == 2
  said = '\n'.join(caplog.messages)
  assert "raises of metrics stopped (RuntimeError('no'))" in said
  assert 'blocks of metrics does not answer' in said
