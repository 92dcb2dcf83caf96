"""Model folders that somebody made to do harm, or that broke by chance.

Whatever a folder holds, it is read as it says or refused with one ValueError
or FileNotFoundError: nothing is run, nothing hangs, nothing huge is allocated.
"""

import contextlib
import json
import os
import pathlib
import pickle
import shutil
import struct

from hypothesis import given
from hypothesis import strategies as st
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import tiny

from jopd.data.tokenizer import builtin_tokenizer
from jopd.models import families, files, hf

TENSORS = {
  'a': np.arange(6, dtype=np.float32).reshape(2, 3),
  'b': np.arange(4, dtype=np.float16),
  'c': np.zeros((0, 2), np.float32),
  'd': np.array([[1.5]], ml_dtypes.bfloat16),
}
WHOLE = safetensors.numpy.save(TENSORS, metadata={'format': 'pt'})
LENGTH = int.from_bytes(WHOLE[:8], 'little')
HEADER = json.loads(WHOLE[8 : 8 + LENGTH])
DATA = WHOLE[8 + LENGTH :]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('folder')


def read(folder, content):
  """The tensors of a file, or None if it is refused as it should be."""
  path = folder / files.WEIGHTS
  path.write_bytes(content)
  with contextlib.ExitStack() as stack:
    try:
      slices = files.open_tensors(folder, stack)
    except ValueError as error:
      assert str(path) in str(error) and '\n' not in str(error)
      return None
    return {
      # The library does not slice what is empty.
      name: (
        part.get_dtype(),
        tuple(part.get_shape()),
        b'' if 0 in part.get_shape() else part[...].tobytes(),
      )
      for name, part in slices.items()
    }


def says(content):
  """What a file says, read the other way: by its offsets alone."""
  length = int.from_bytes(content[:8], 'little')
  header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
  header.pop('__metadata__', None)
  return {
    name: (t['dtype'], tuple(t['shape']), data[slice(*t['data_offsets'])])
    for name, t in header.items()
  }


def packed(header, data=DATA):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  return struct.pack('<Q', len(text)) + text + data


def test_a_whole_file_is_read_as_it_says(folder):
  found = read(folder, WHOLE)
  assert found == says(WHOLE) and set(found) == set(TENSORS)
  assert found['a'][2] == TENSORS['a'].tobytes()


# Kills: bytes of the header that decide an allocation, or read beyond it.
@given(
  st.lists(
    st.tuples(st.integers(0, 8 + LENGTH - 1), st.integers(0, 255)),
    min_size=1,
    max_size=4,
  ),
  st.integers(-9, 9),
)
def test_a_damaged_header_is_refused_or_read_as_it_says(folder, changes, cut):
  content = bytearray(WHOLE)
  for place, byte in changes:
    content[place] = byte
  content = bytes(content[:cut] if cut < 0 else content + bytes(cut))
  found = read(folder, content)
  assert found is None or found == says(content)


odd = st.one_of(
  st.none(),
  st.booleans(),
  st.floats(),
  st.sampled_from([-1, 0, 1, 2, 2**31, 2**63, 2**64, 10**400, 'F32', 'F128']),
  st.lists(
    st.sampled_from([-1, 0, 1, 2, 3, 2**32, 2**63, 1.0, '1']), max_size=3
  ),
)


# Kills: offsets that are not those of shape and dtype, overlaps, holes.
@given(
  st.sampled_from(['a', 'b', 'c', 'd']),
  st.sampled_from(['dtype', 'shape', 'data_offsets', 'new']),
  odd,
)
def test_a_field_that_is_changed_is_refused_or_read_as_it_says(
  folder, name, field, value
):
  header = json.loads(json.dumps(HEADER))
  header[name][field] = value
  try:
    content = packed(header)
  except ValueError:
    return  # 10**400 has too many digits even to be written
  found = read(folder, content)
  if found is not None:
    assert found == says(content)
    # What fits may be a shape with the same product.
    assert len(found[name][2]) == TENSORS[name].nbytes


F32 = dict(dtype='F32', shape=[2], data_offsets=[0, 8])


@pytest.mark.parametrize(
  'content',
  [
    b'',
    b'1234567',
    struct.pack('<Q', 2**63),
    struct.pack('<Q', 2**64 - 1) + b'{}',
    struct.pack('<Q', 10**9) + b'{}',
    packed(b'[]'),
    packed(b'{"a"\xff: 1}'),
    packed(b'[' * 10**6),
    packed(b'{"a":' * 10**5),
    packed({'a': F32 | dict(shape=[float('nan')])}, bytes(8)),
    packed({'a': F32 | dict(shape=[2**62, 4])}, bytes(8)),
    packed({'a': F32 | dict(data_offsets=[8, 0])}, bytes(8)),
    packed({'a': F32 | dict(data_offsets=[8, 16])}, bytes(16)),
    packed({'a': F32, 'b': F32}, bytes(8)),
    packed({'a': F32, 'b': F32 | dict(data_offsets=[12, 20])}, bytes(20)),
    packed({'a': F32}, bytes(9)),
    packed({'a': F32}, bytes(7)),
    packed({'a': F32 | dict(dtype='I128')}, bytes(8)),
    packed({'a': F32 | dict(shape=[True, 2])}, bytes(8)),
    packed({'a': dict(dtype='F32', shape=[2])}, bytes(8)),
    packed({'a': F32, '__metadata__': {'format': 3}}, bytes(8)),
    # Two tensors of one name, of which the library takes the last.
    packed(
      b'{"a": %s, "a": %s}'
      % (
        json.dumps(F32).encode(),
        json.dumps(F32 | dict(dtype='I32')).encode(),
      ),
      bytes(8),
    ),
  ],
)
def test_what_cannot_be_is_refused(folder, content):
  assert read(folder, content) is None


class Evil:
  def __reduce__(self):
    return (os.mkdir, (str(Evil.path),))


@pytest.mark.parametrize('protocol', [0, 2, 5])
def test_a_pickle_by_another_name_is_not_unpickled(tmp_path, protocol):
  Evil.path = tmp_path / 'ran'
  assert read(tmp_path, pickle.dumps(Evil(), protocol)) is None
  assert not Evil.path.exists()


@pytest.fixture
def model(tmp_path):
  return pathlib.Path(tiny.save_model(tmp_path / 'model'))


@pytest.mark.parametrize(
  'name', ['../secret', '{folder}/secret', 'sub/../../secret', 'link']
)
def test_an_index_that_points_out_of_its_folder_is_refused(
  tmp_path, model, name
):
  secret = tmp_path / 'secret'
  (model / files.WEIGHTS).rename(secret)
  (model / 'link').symlink_to(secret)
  name = name.format(folder=tmp_path)
  index = {'weight_map': dict.fromkeys(['a'], name)}
  (model / files.INDEX).write_text(json.dumps(index))
  with pytest.raises(ValueError, match='outside of its folder'):
    hf.load(model)


@pytest.mark.parametrize(
  'name',
  ['config.json', files.WEIGHTS, 'tokenizer.json', 'tokenizer_config.json'],
)
@pytest.mark.parametrize('kind', ['pipe', 'device'])
def test_what_would_never_end_is_not_read(model, name, kind):
  # Kills: an `open` that waits for a writer, or reads zeros for ever.
  path = model / name
  path.unlink(missing_ok=True)
  if kind == 'pipe':
    os.mkfifo(path)
  else:
    path.symlink_to('/dev/zero')
  with pytest.raises(ValueError, match=f'{name} is not a regular file'):
    hf.load_tokenizer(model)
  if not name.startswith('tokenizer'):
    with pytest.raises(ValueError, match=f'{name} is not a regular file'):
      hf.load(model)


def test_a_shard_that_would_never_end_is_not_read(model):
  (model / files.WEIGHTS).unlink()
  os.mkfifo(model / 'shard')
  (model / files.INDEX).write_text('{"weight_map": {"a": "shard"}}')
  with pytest.raises(ValueError, match='shard is not a regular file'):
    hf.load(model)


def test_code_that_a_folder_brings_is_not_run(model):
  path = model / 'ran'
  (model / 'evil.py').write_text(
    f'import os; os.mkdir({str(path)!r})\nclass T: pass\n'
  )
  for name in ('tokenizer_config.json', 'config.json'):
    fields = json.loads((model / name).read_text())
    fields['auto_map'] = {
      'AutoTokenizer': ['evil.T', 'evil.T'],
      'AutoModelForCausalLM': 'evil.T',
      'AutoConfig': 'evil.T',
    }
    fields['tokenizer_class'] = 'T'
    (model / name).write_text(json.dumps(fields))
  with contextlib.suppress(ValueError):
    hf.load_tokenizer(model)
  with pytest.raises(ValueError, match='auto_map'):
    hf.load(model)
  assert not path.exists()


# config.json

FIELDS = [
  dict(
    model_type='qwen3',
    vocab_size=64,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    sliding_window=None,
    use_sliding_window=False,
    layer_types=['full_attention'] * 2,
    rope_parameters=dict(rope_theta=1e4, rope_type='linear', factor=2.0),
    tie_word_embeddings=True,
  ),
  dict(
    model_type='gemma3_text',
    vocab_size=64,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    sliding_window=4,
    rope_parameters=dict(
      full_attention=dict(rope_type='linear', factor=8.0, rope_theta=1e6),
      sliding_attention=dict(rope_type='default', rope_theta=1e4),
    ),
  ),
  dict(
    model_type='qwen3_moe',
    vocab_size=64,
    hidden_size=16,
    moe_intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    num_experts=4,
    num_experts_per_tok=2,
    norm_topk_prob=True,
  ),
]
garbage = st.recursive(
  st.none()
  | st.booleans()
  | st.floats()
  | st.sampled_from([-1, 0, 1, 3, 7, 2**31, 2**63, 10**30])
  | st.sampled_from(['', 'qwen3', 'linear', 'full_attention', 'é']),
  lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(
      st.sampled_from(['rope_type', 'factor', 'full_attention', 'x']),
      inner,
      max_size=3,
    )
  ),
  max_leaves=5,
)


@given(st.data())
def test_a_config_is_a_model_or_one_value_error(data):
  # Kills: a TypeError from deep below; layers that are counted to 10**30.
  fields = dict(data.draw(st.sampled_from(FIELDS)))
  families.from_hf(fields)
  names = data.draw(
    st.lists(st.sampled_from(sorted(fields)), min_size=1, max_size=2)
  )
  for name in names:
    fields[name] = data.draw(garbage)
  try:
    families.from_hf(fields)
  except ValueError as error:
    assert str(error)


@given(st.binary(max_size=60) | garbage.map(json.dumps).map(str.encode))
def test_garbage_for_a_json_file_is_one_value_error(folder, content):
  path = folder / 'config.json'
  path.write_bytes(content)
  with pytest.raises(ValueError) as error:
    hf.read_config(folder)
  assert str(path) in str(error.value)


@pytest.fixture(scope='module')
def tokenizers(tmp_path_factory):
  folder = tmp_path_factory.mktemp('tokenizer')
  builtin_tokenizer().save_pretrained(folder)
  shutil.copytree(folder, folder / 'whole')
  return folder


@given(st.data())
def test_a_damaged_tokenizer_is_read_or_one_value_error(tokenizers, data):
  # Kills: a panic of the reader in Rust, which is no Exception.
  names = ('tokenizer.json', 'tokenizer_config.json')
  name = data.draw(st.sampled_from(names))
  content = bytearray((tokenizers / 'whole' / name).read_bytes())
  cut = data.draw(st.none() | st.integers(0, len(content) - 1))
  places = st.integers(0, min(len(content), 2000) - 1)
  for place in data.draw(st.lists(places, max_size=3)):
    content[place] = data.draw(st.integers(0, 255))
  (tokenizers / name).write_bytes(content if cut is None else content[:cut])
  try:
    hf.load_tokenizer(tokenizers)
  except ValueError as error:
    assert f'tokenizer in {tokenizers} cannot be read' in str(error)
  finally:
    shutil.copy(tokenizers / 'whole' / name, tokenizers / name)


@pytest.mark.parametrize('value', ['x', [None], {'a': 1}, 1.5, True, -1, [[1]]])
def test_a_stop_that_is_no_token_is_refused(model, value):
  # Kills: a stop that never comes, or a TypeError when ids are sorted.
  tokenizer = hf.load_tokenizer(model)
  path = model / 'generation_config.json'
  path.write_text(json.dumps({'eos_token_id': value}))
  with pytest.raises(ValueError, match='eos_token_id must be a token id'):
    hf.stop_ids(model, tokenizer)
