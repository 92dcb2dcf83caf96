"""Who the processes are; several of them are in train/test_processes.py."""

import jax
import pytest

from jopd.train import distributed
from jopd.train.errors import WrongInputError


@pytest.mark.parametrize(
  'given, message',
  [
    (('a:1', None, None), 'give all of --coordinator=HOST:PORT, --processes'),
    ((None, 2, 0), 'give all of'),
    (('a:1', 2, 2), 'there is no process 2 among 2'),
    ((None, None, None), 'no cluster was found .* give --coordinator'),
  ],
)
def test_processes_that_cannot_meet_are_refused(given, message, monkeypatch):
  # Kills: waiting minutes for a process that cannot be. JAX itself would say
  # that it had to be first, since these tests have used it.
  def initialize(*given, **timeouts):
    assert max(timeouts.values()) <= 60  # kills: five minutes for a dead host
    raise ValueError('coordinator_address should be defined.')

  monkeypatch.setattr(jax.distributed, 'initialize', initialize)
  with pytest.raises(WrongInputError, match=message):
    distributed.join(*given)


def test_one_process_knows_its_own_text():
  assert distributed.texts('{"a": "\u00fc"}') == ['{"a": "\u00fc"}']


def test_processes_that_differ_are_refused(monkeypatch):
  # Kills: batches of one order over two different files.
  distributed.check_same('data of ', {'warm': {'rows': 3}})
  other = '{"warm": {"rows": 3}, "distil": {"rows": 4}}'
  monkeypatch.setattr(distributed, 'texts', lambda own: [own, own, other])
  same = {'warm': {'rows': 3}, 'distil': {'rows': 5}}
  with pytest.raises(
    WrongInputError, match='process 2 has another data of distil than process 0'
  ):
    distributed.check_same('data of ', same)


def test_one_process_alone_just_returns(monkeypatch):
  # Kills: an exit in the middle of a test, or of somebody's notebook.
  distributed.give_up(1)
