"""Checkpoints and finished stages that were hurt: named, and gone round."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jopd import sharding
from jopd.train import checkpoint, manifest, pipeline
from jopd.train.checkpoint import Checkpoints
from jopd.train.errors import WrongInputError
from jopd.train.state import TrainState, init_state, state_shardings

TX = optax.adam(0.1)


def _params(value=0.0):
  return {'w': jnp.arange(32.0).reshape(4, 8) + value}


def _state(step):
  """A state that is another at every step."""
  state = init_state(_params(step), TX, {'slow': _params(-step)})
  return state._replace(step=jnp.int32(step))


def _open(folder, **options):
  settings = dict(every=2, keep=2, fingerprint={'seed': 0})
  return Checkpoints(folder, **settings | options)


def _with(resume):
  return lambda: (resume, {})


def _saved(folder, *steps):
  checkpoints = _open(folder)
  for step in steps:
    checkpoints.save(step, _state(step), _with({'batch': step}))
  checkpoints.close()


def _restored(checkpoints):
  state, iterator = checkpoints.restore(_state(0))
  return int(state.step), state, iterator


def _names(folder):
  return sorted(path.name for path in folder.iterdir())


def _file(folder):
  """The largest file."""
  files = [p for p in folder.rglob('*') if p.is_file()]
  return max(files, key=lambda path: path.stat().st_size)


def _flip(folder):
  content = bytearray(_file(folder).read_bytes())
  content[len(content) // 2] ^= 1
  _file(folder).write_bytes(content)


HURT = {
  'a flipped bit': _flip,
  'a file cut short': lambda f: _file(f).write_bytes(b'x'),
  'an empty file': lambda f: _file(f).write_bytes(b''),
  'a deleted file': lambda f: (f / 'resume' / 'metadata').unlink(),
  'no mark': lambda f: (f / manifest.NAME).unlink(),
  'a mark of another step': lambda f: (f / manifest.NAME).write_bytes(
    (f.parent / '2' / manifest.NAME).read_bytes()
  ),
  'an empty folder': lambda f: [
    p.unlink() for p in f.rglob('*') if p.is_file()
  ],
}


# Kills: bytes that Orbax restores without a word, a name that is taken for
# whole, a damaged checkpoint that is deleted, or kept in the place of a good
# one when the step comes again.
@pytest.mark.parametrize('kind', HURT)
def test_the_newest_whole_checkpoint_is_restored(tmp_path, caplog, kind):
  _saved(tmp_path, 2, 4)
  HURT[kind](tmp_path / '4')
  checkpoints = _open(tmp_path)
  [line] = caplog.messages
  assert f'checkpoint {tmp_path}/4 is damaged: ' in line
  assert line.endswith('and step 2 is gone on from')
  step, state, iterator = _restored(checkpoints)
  assert (step, iterator) == (2, {'batch': 2})
  jax.tree.map(np.testing.assert_array_equal, state, _state(2))
  checkpoints.save(4, _state(4), _with({'batch': 4}))
  checkpoints.close()
  assert _names(tmp_path) == ['2', '4', '4.damaged']
  assert _restored(_open(tmp_path))[0] == 4


def test_strict_stops_and_touches_nothing(tmp_path):
  _saved(tmp_path, 2, 4)
  _flip(tmp_path / '4')
  with pytest.raises(
    WrongInputError, match=r'4 is damaged: .* on from step 2 '
  ):
    _open(tmp_path, strict=True)
  assert _names(tmp_path) == ['2', '4']


def test_without_a_whole_checkpoint_the_stage_begins_again(tmp_path, caplog):
  _saved(tmp_path, 2, 4)
  for step in ('2', '4'):
    _flip(tmp_path / step)
  checkpoints = _open(tmp_path)
  assert checkpoints.restore(_state(0)) is None
  said = caplog.messages
  assert len(said) == 2 and 'the beginning is gone on from' in said[0]
  assert _names(tmp_path) == ['2.damaged', '4.damaged']


# Each is what a kill leaves: of Orbax, before the rename, during the removal.
# Kills: half a save that is restored, and leftovers that fill the disk.
def test_leftovers_are_not_checkpoints(tmp_path, caplog):
  _saved(tmp_path, 2)
  for name in ('.4.partial.orbax-checkpoint-tmp', '.4.partial', '.0.old'):
    (tmp_path / name / 'state').mkdir(parents=True)
  checkpoints = _open(tmp_path, strict=True)
  assert caplog.messages == []
  assert _names(tmp_path) == ['2']
  assert _restored(checkpoints)[0] == 2


# A run was killed after its last save: there is none to come. Kills: old
# checkpoints that then stay for ever.
def test_what_is_too_many_goes_when_a_run_begins(tmp_path):
  _saved(tmp_path, 2, 4)
  checkpoints = _open(tmp_path, keep=1)
  assert _names(tmp_path) == ['4']
  assert _restored(checkpoints)[0] == 4


# Kills: retention that counts damaged ones, or removes the old before the new.
def test_the_newest_are_kept(tmp_path, monkeypatch):
  _saved(tmp_path, 2, 3, 4, 6, 8)
  assert _names(tmp_path) == ['6', '8']
  _flip(tmp_path / '8')
  checkpoints = _open(tmp_path)

  def fail(*args):
    raise OSError(28, 'No space left on device')

  with monkeypatch.context() as patch:
    patch.setattr(checkpoint.files, 'publish', fail)
    with pytest.raises(OSError, match='No space left'):
      checkpoints.save(8, _state(8))
  checkpoints.close()
  checkpoints = _open(tmp_path)
  assert _restored(checkpoints)[0] == 6
  for step in (8, 10):
    checkpoints.save(step, _state(step), _with({'batch': step}))
  checkpoints.close()
  assert _names(tmp_path) == ['10', '8', '8.damaged']


# Kills: a state that goes back to the devices that it was saved from, and
# shards of which one is lost.
def test_a_state_moves_to_another_mesh(tmp_path):
  axes = {'w': ('embed', 'mlp')}

  def placed(state, **shape):
    mesh = sharding.make_mesh(**shape)
    where = sharding.param_shardings(mesh, axes, state.params)
    where = state_shardings(mesh, where, state.params, TX, ['slow'])
    return jax.device_put(state, where), where

  checkpoints = _open(tmp_path)
  checkpoints.save(2, placed(_state(2), data=2, fsdp=2, tensor=2)[0])
  for shape in (dict(data=8), dict(data=1, fsdp=4, tensor=2)):
    target, where = placed(_state(0), **shape)
    state, _ = checkpoints.restore(target)
    jax.tree.map(np.testing.assert_array_equal, state, _state(2))
    assert jax.tree.map(lambda x: x.sharding, state) == where
  assert isinstance(state, TrainState)
  checkpoints.close()


@pytest.fixture
def finished(tmp_path):
  """A stage that has ended, its checkpoint, and what lies in its folder."""
  stage = tmp_path / 'distil'
  _saved(stage / 'checkpoints', 2)
  (stage / 'model').mkdir()
  (stage / 'model' / 'model.safetensors').write_bytes(b'weights' * 100)
  (stage / 'result.json').write_text('{"steps": 2}')
  contents = manifest.describe(stage, ('model', 'result.json'))
  (stage / manifest.NAME).write_text(json.dumps(contents))
  return stage


def _finished(stage, *, strict=False):
  return pipeline._is_finished(stage, strict)


# Kills: a stage that is redone though it is whole, or for a file of others.
def test_a_whole_stage_is_finished(finished):
  (finished / 'model' / 'README.md').write_text('A model card.')
  assert _finished(finished, strict=True) is True


@pytest.mark.parametrize('part', ['model', 'result.json'])
def test_a_damaged_stage_is_made_again(finished, caplog, part):
  # Kills: weights that are loaded as they are, and a model that is deleted.
  if part == 'model':
    _flip(finished / 'model')
  else:
    (finished / 'result.json').write_text('{"steps": 3}')
  with pytest.raises(WrongInputError, match=r'is damaged: .* of step 2'):
    _finished(finished, strict=True)
  assert not _finished(finished)
  assert f'{finished} is damaged: {part}' in caplog.messages[0]
  assert (finished / 'model.damaged' / 'model.safetensors').exists()
  assert not (finished / 'model').exists()
  assert _finished(finished) is False


def test_a_stage_that_was_killed_before_its_mark_is_not_finished(finished):
  (finished / manifest.NAME).unlink()
  assert _finished(finished, strict=True) is False


# Kills: hours of training that are repeated unasked.
@pytest.mark.parametrize('marked', [True, False])
def test_a_damaged_stage_without_checkpoints_is_refused(finished, marked):
  _flip(finished / 'model')
  _flip(finished / 'checkpoints' / '2')
  if not marked:
    (finished / manifest.NAME).unlink()
  with pytest.raises(WrongInputError, match='nothing to make it from again'):
    _finished(finished)
  assert (finished / 'model').exists()


def test_a_stage_that_has_not_begun_is_not_finished(tmp_path):
  assert _finished(tmp_path / 'distil', strict=True) is False


# Kills: state that is collected at every step, and rows that are synced.
def test_state_is_collected_only_when_a_save_is_due(tmp_path):
  checkpoints, collected = _open(tmp_path), []
  for step in range(1, 6):
    collect = lambda step=step: collected.append(step) or ({}, {})
    checkpoints.save(step, _state(step), collect)
  checkpoints.save(4, _state(4), collect, force=True)  # it is there
  checkpoints.close()
  assert collected == [2, 4]
