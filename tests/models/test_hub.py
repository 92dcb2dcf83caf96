"""Names of the hub become folders: found, fetched, or refused in one line."""

import fnmatch
import pathlib

import huggingface_hub
import pytest

from jopd.models import hub


def test_a_folder_is_what_it_is(tmp_path, monkeypatch):
  # Kills: asking the hub for Qwen/Qwen3-1.7B where that is a folder.
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'owner' / 'model').mkdir(parents=True)
  monkeypatch.setattr(
    huggingface_hub, 'snapshot_download', lambda *_, **__: pytest.fail('asked')
  )
  assert hub.find('owner/model') == 'owner/model'
  # No names of the hub: whoever reads them says what is wrong.
  for path in ('nowhere', '/no/where', '../no', 'a/b/c', './a/b'):
    assert hub.find(path) == path
  with pytest.raises(ValueError, match="revision is 'v1', but owner/model is"):
    hub.find('owner/model', 'v1')


def test_what_was_fetched_is_found_without_a_network(tmp_path, monkeypatch):
  # The cache as the hub's client lays it out; the tests are offline.
  cache = tmp_path / 'models--owner--model'
  snapshot = cache / 'snapshots' / '0123abcd'
  snapshot.mkdir(parents=True)
  (snapshot / 'config.json').write_text('{}')
  (cache / 'refs').mkdir()
  for name in ('main', 'v1'):
    (cache / 'refs' / name).write_text('0123abcd')
  monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path))
  assert pathlib.Path(hub.find('owner/model')) == snapshot
  assert pathlib.Path(hub.find('owner/model', 'v1')) == snapshot
  with pytest.raises(
    FileNotFoundError, match='owner/model is not a local folder'
  ):
    hub.find('owner/model', 'v2')


def test_what_cannot_be_had_is_one_line_with_the_cure():
  with pytest.raises(FileNotFoundError) as error:
    hub.find('owner/missing')
  message = str(error.value)
  assert message.startswith(
    'owner/missing is not a local folder and could not be'
  )
  assert '`hf download owner/missing --local-dir=owner/missing`' in message
  assert '\n' not in message


# Kills: fetching the same weights twice, a pickle, or no chat template.
def test_what_is_read_is_fetched_and_nothing_else(monkeypatch):
  asked = {}

  def spy(name, **options):
    asked.update(options, name=name)
    return 'folder'

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', spy)
  assert hub.find('owner/model', 'v1') == 'folder'
  assert (asked['name'], asked['revision']) == ('owner/model', 'v1')
  some = lambda name, kinds: any(fnmatch.fnmatch(name, k) for k in kinds)
  fetched = lambda name: (
    some(name, asked['allow_patterns'])
    and not some(name, asked['ignore_patterns'])
  )
  for name in (
    'model.safetensors',
    'model-00001-of-00002.safetensors',
    'model.safetensors.index.json',
    'config.json',
    'generation_config.json',
    'tokenizer.json',
    'tokenizer_config.json',
    'vocab.json',
    'merges.txt',
    'tokenizer.model',
    'chat_template.jinja',
  ):
    assert fetched(name), name
  for name in (
    'pytorch_model.bin',
    'consolidated.safetensors',
    'original/model.safetensors',
    'modeling_evil.py',
    'model.gguf',
    'training_args.pt',
    'README.md',
  ):
    assert not fetched(name), name
