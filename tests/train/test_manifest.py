"""A folder that has changed since it was written is found out, by its bytes."""

import hashlib
import json

import pytest

from jopd.train import manifest

TEXT = {'a.bin': b'one two', 'deep/b.bin': b'three', 'empty': b''}


@pytest.fixture
def folder(tmp_path):
  """Three files and their manifest."""
  for name, content in TEXT.items():
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content)
  contents = json.dumps(manifest.describe(tmp_path))
  (tmp_path / manifest.NAME).write_text(contents)
  return tmp_path


# Kills: a digest of names, of sizes, or of the first block alone.
def test_a_manifest_is_the_sha256_of_each_file(folder, monkeypatch):
  monkeypatch.setattr(manifest, '_BLOCK', 3)
  assert manifest.describe(folder) == {
    'files': {
      name: {
        'bytes': len(content),
        'sha256': hashlib.sha256(content).hexdigest(),
      }
      for name, content in TEXT.items()
    }
  }
  assert manifest.damage(folder) == ''
  assert manifest.describe(folder, ('deep', 'empty'))['files'].keys() == {
    'deep/b.bin',
    'empty',
  }


def _flip(path):
  content = bytearray(path.read_bytes())
  content[2] ^= 1
  path.write_bytes(content)


OTHER = {'files': {'c.bin': {'bytes': 0, 'sha256': ''}}}
WRONG = {
  'flipped': (
    lambda f: _flip(f / 'a.bin'),
    'a.bin has other bytes than were written',
  ),
  'cut': (
    lambda f: (f / 'a.bin').write_bytes(b'one'),
    'a.bin has 3 bytes instead of 7',
  ),
  'emptied': (
    lambda f: (f / 'deep/b.bin').write_bytes(b''),
    'deep/b.bin has 0 bytes instead of 5',
  ),
  'filled': (
    lambda f: (f / 'empty').write_bytes(b'!'),
    'empty has 1 bytes instead of 0',
  ),
  'deleted': (lambda f: (f / 'deep/b.bin').unlink(), 'deep/b.bin is missing'),
  'unmarked': (
    lambda f: (f / manifest.NAME).unlink(),
    'manifest.json is missing',
  ),
  'half a mark': (
    lambda f: (f / manifest.NAME).write_bytes(
      (f / manifest.NAME).read_bytes()[:40]
    ),
    'manifest.json cannot be read',
  ),
  'another kind of mark': (
    lambda f: (f / manifest.NAME).write_text('["files"]'),
    'manifest.json cannot be read',
  ),
  'no bytes': (
    lambda f: (f / manifest.NAME).write_bytes(b'\xff\xfe'),
    'manifest.json cannot be read',
  ),
  'an empty mark': (
    lambda f: (f / manifest.NAME).write_text('{"files": {}}'),
    'manifest.json names no file',
  ),
  "another folder's mark": (
    lambda f: (f / manifest.NAME).write_text(json.dumps(OTHER)),
    'c.bin is missing',
  ),
}


@pytest.mark.parametrize('kind', WRONG)
def test_damage_is_named(folder, kind):
  hurt, says = WRONG[kind]
  hurt(folder)
  assert manifest.damage(folder) == says


# Kills: a model card that was added to a finished model counting as damage.
def test_what_others_put_there_does_not_matter(folder):
  (folder / 'README.md').write_text('A model.')
  assert manifest.damage(folder) == ''
