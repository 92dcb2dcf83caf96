"""Model folders: what is refused, what is replaced, where arrays land."""

import dataclasses
import functools
import json
import os
import shutil
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tokenizers

from jopd import sharding
from jopd.models import DecoderConfig, files, hf, make_model
from jopd.models.files import read_part, to_tensor

CONFIG = DecoderConfig(
  vocab_size=64,
  layers=2,
  embed=16,
  heads=4,
  kv_heads=2,
  head_dim=6,
  mlp=24,
  rope_theta=5e4,
  qk_norm=True,
  init_scale=0.3,
)
MODEL = make_model(CONFIG)


def _random(model):
  """Params of a model; compiling its init would take longer than the tests."""
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  return jax.tree.map(
    lambda s: jnp.asarray(rng.normal(size=s.shape), jnp.float32), shapes
  )


@pytest.fixture(scope='module')
def params():
  return _random(MODEL)


@pytest.fixture(scope='module')
def saved(params, tmp_path_factory):
  folder = tmp_path_factory.mktemp('saved') / 'model'
  hf.save(folder, MODEL, params)
  return folder


@pytest.fixture
def folder(saved, tmp_path):
  """A copy that a test may spoil."""
  shutil.copytree(saved, tmp_path / 'model')
  return tmp_path / 'model'


@pytest.fixture
def sharded(params, tmp_path):
  hf.save(tmp_path / 'model', MODEL, params, max_shard_bytes=6_000)
  return tmp_path / 'model'


@pytest.fixture(scope='module')
def tokenizer():
  transformers = pytest.importorskip('transformers')
  vocab = {'<unk>': 0, '<end>': 1, '<turn>': 2, 'a': 3, 'b': 4}
  model = tokenizers.models.WordLevel(vocab, unk_token='<unk>')
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizers.Tokenizer(model),
    unk_token='<unk>',
    eos_token='<end>',
  )


def _equal(got, want):
  jax.tree.map(np.testing.assert_array_equal, got, want)


def _edit(path, **fields):
  path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def _edit_tensors(folder, change):
  path = folder / 'model.safetensors'
  tensors = safetensors.numpy.load_file(path)
  change(tensors)
  safetensors.numpy.save_file(tensors, path)


# Round trips.


def test_what_is_saved_is_loaded_bit_by_bit(saved, sharded, params):
  # Kills: a matrix transposed once; layers in the order '0', '1', '10'.
  for folder in (saved, sharded):
    model, got = hf.load(folder)
    assert model.config == CONFIG
    _equal(got, params)


def test_no_file_is_larger_than_asked(sharded):
  files = list(sharded.glob('*.safetensors'))
  assert len(files) > 2
  for file in files:
    # A table of 64 x 16 floats, 4096 bytes, is the largest tensor.
    tensors = safetensors.numpy.load_file(file)
    assert sum(t.nbytes for t in tensors.values()) <= 6_000


def test_a_dtype_is_cast_once_in_and_out(params, tmp_path):
  # Kills: rounding twice; a config that claims another dtype.
  want = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
  hf.save(tmp_path / 'model', MODEL, params, dtype='bfloat16')
  config = json.loads((tmp_path / 'model' / 'config.json').read_text())
  assert config['dtype'] == 'bfloat16'
  _equal(hf.load(tmp_path / 'model')[1], want)
  _, wide = hf.load(tmp_path / 'model', dtype=jnp.float32)
  assert wide['embed'].dtype == jnp.float32
  _equal(wide, want)


def test_any_part_of_an_array_is_read_from_its_own_rows():
  # Kills: heads cut across the product H * N; an axis order inverted.
  axes, dims = (
    ('embed', 'heads', 'head_dim'),
    (('heads', 'head_dim'), ('embed',)),
  )
  ours = np.arange(4 * 6 * 2).reshape(4, 6, 2)
  tensor = to_tensor(ours, dims, axes)
  # Row h * N + n of the file is head h, component n; columns are the input.
  assert tensor.shape == (12, 4) and tensor[5 * 2 + 1, 3] == ours[3, 5, 1]
  for index in (
    (slice(None), slice(None), slice(None)),
    (slice(1, 3), slice(2, 6), slice(None)),
    (slice(0, 4), slice(3, 4), slice(1, 2)),
  ):
    got = read_part(tensor, dims, axes, ours.shape, index)
    np.testing.assert_array_equal(got, ours[index])


# Placement.


def test_loading_onto_a_mesh_gives_the_same_values_in_parts(saved, params):
  # Kills: parts that are read for the wrong device; arrays left whole.
  mesh = sharding.make_mesh(2, 2, 2)
  place = functools.partial(sharding.param_shardings, mesh)
  _, got = hf.load(saved, shardings=place)
  _equal(got, params)
  assert jax.tree.map(lambda p: p.sharding, got) == place(MODEL.axes, params)
  q = got['layers']['attention']['q']
  assert q.addressable_shards[0].data.shape == (2, 8, 2, 6)


def test_a_model_on_a_mesh_is_saved_whole(saved, params, tmp_path):
  # Kills: writing the part of the first device.
  mesh = sharding.make_mesh(2, 2, 2)
  where = sharding.param_shardings(mesh, MODEL.axes, params)
  hf.save(tmp_path / 'model', MODEL, jax.device_put(params, where))
  names = ['config.json', 'model.safetensors']
  assert sorted(p.name for p in (tmp_path / 'model').iterdir()) == names
  for name in names:
    assert (tmp_path / 'model' / name).read_bytes() == (
      saved / name
    ).read_bytes()


def test_the_forward_on_a_mesh_equals_one_device(saved, params):
  # Kills: a softmax or a norm over one device's part only.
  mesh = sharding.make_mesh(2, 2, 2)
  model, split = hf.load(
    saved,
    shardings=functools.partial(sharding.param_shardings, mesh),
    constrain=sharding.constrain_batch(mesh),
  )
  tokens = np.random.default_rng(0).integers(0, 64, (8, 20))
  want, _ = jax.jit(MODEL.apply)(params, tokens)
  rows = jax.device_put(tokens, sharding.batch_sharding(mesh))
  got, _ = jax.jit(model.apply)(split, rows)
  np.testing.assert_allclose(got, want, atol=1e-5, rtol=0)
  assert got.sharding.is_equivalent_to(sharding.batch_sharding(mesh), 3)


def test_a_part_of_an_array_is_all_that_is_read(saved, monkeypatch):
  # Kills: assembling the whole stack of layers for each device.
  read = []

  def spy(tensor, *args):
    part = read_part(tensor, *args)
    read.append(part.nbytes)
    return part

  monkeypatch.setattr(hf, 'read_part', spy)
  mesh = sharding.make_mesh(1, 2, 4)
  model = make_model(dataclasses.replace(CONFIG, kv_heads=4))
  hf.save(saved.parent / 'wide', model, _random(model))
  hf.load(
    saved.parent / 'wide',
    shardings=functools.partial(sharding.param_shardings, mesh),
  )
  assert max(read) == 64 * 16 * 4 / 8  # an eighth of the embedding


# Refusals.


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('config.json', r'config.json does not exist: expected a local folder'),
    ('model.safetensors', 'has neither .* nor .*index'),
  ],
)
def test_a_missing_file_is_named(folder, name, message):
  (folder / name).unlink()
  with pytest.raises(FileNotFoundError, match=message):
    hf.load(folder)


def test_a_missing_folder_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'nowhere.*download it first'):
    hf.load(tmp_path / 'nowhere')


def test_a_field_at_fault_is_named_with_its_file(folder):
  _edit(folder / 'config.json', logit_scale=2)
  with pytest.raises(ValueError, match=r'config\.json: unknown field logit'):
    hf.load(folder)


def test_broken_json_is_refused(folder):
  (folder / 'config.json').write_text('{"a":')
  with pytest.raises(ValueError, match='is not valid JSON'):
    hf.load(folder)


def test_missing_and_unused_tensors_are_named(folder):
  # Kills: a random layer in place of one that the file lacks.
  def rename(tensors):
    tensors['extra.weight'] = tensors['model.norm.weight']

  _edit_tensors(folder, rename)
  with pytest.raises(ValueError, match=r'not use: extra\.weight; weights and'):
    hf.load(folder)
  _edit_tensors(
    folder, lambda t: (t.pop('extra.weight'), t.pop('lm_head.weight'))
  )
  with pytest.raises(ValueError, match=r'requires: lm_head\.weight'):
    hf.load(folder)


def test_a_wrong_shape_is_refused_with_both_shapes(folder):
  _edit(folder / 'config.json', intermediate_size=20)
  with pytest.raises(ValueError, match=r'shape \(16, 24\), .* \(16, 20\)'):
    hf.load(folder)


def test_a_stored_head_must_repeat_the_embedding_when_tied(folder):
  # Kills: silently preferring either of two different tables.
  _edit(folder / 'config.json', tie_word_embeddings=True)
  with pytest.raises(ValueError, match='set it to false to use the stored'):
    hf.load(folder)
  _edit_tensors(
    folder, lambda t: t.update({hf._HEAD: t['model.embed_tokens.weight']})
  )
  model, params = hf.load(folder)
  assert model.head(params) is params['embed']
  # A head alone is not an embedding.
  _edit_tensors(folder, lambda t: t.pop(hf._EMBED))
  with pytest.raises(ValueError, match=r'lacks .*model\.embed_tokens'):
    hf.load(folder)


def test_mixed_dtypes_need_a_choice(folder):
  def narrow(tensors):
    tensors['model.norm.weight'] = tensors['model.norm.weight'].astype('f2')

  _edit_tensors(folder, narrow)
  with pytest.raises(ValueError, match=r'dtypes F16, F32.*pass dtype='):
    hf.load(folder)
  assert hf.load(folder, dtype='float32')[1]['embed'].dtype == jnp.float32
  with pytest.raises(ValueError, match='parameters cannot be int8'):
    hf.load(folder, dtype='int8')


@pytest.mark.parametrize('keep', [4, 100, -5])
def test_a_truncated_file_is_refused(folder, keep):
  path = folder / 'model.safetensors'
  path.write_bytes(path.read_bytes()[:keep])
  with pytest.raises(ValueError, match='not a valid safetensors file'):
    hf.load(folder)


def test_a_header_that_lies_is_refused(folder):
  path = folder / 'model.safetensors'
  path.write_bytes(struct.pack('<Q', 2**62) + path.read_bytes()[8:])
  with pytest.raises(ValueError, match='not a valid safetensors file'):
    hf.load(folder)


@pytest.mark.parametrize('kind', ['absolute', 'dots', 'link'])
def test_an_index_that_leaves_its_folder_is_refused(sharded, tmp_path, kind):
  # The file outside is a good one: only the path is at fault.
  index = sharded / 'model.safetensors.index.json'
  weights = json.loads(index.read_text())['weight_map']
  name = weights['lm_head.weight']
  shutil.move(sharded / name, tmp_path / 'out.safetensors')
  if kind == 'link':
    os.symlink(tmp_path / 'out.safetensors', sharded / name)
    bad = name
  else:
    outside = {'absolute': tmp_path / 'out.safetensors'}
    bad = str(outside.get(kind, '../out.safetensors'))
  moved = {t: bad if file == name else file for t, file in weights.items()}
  _edit(index, weight_map=moved)
  with pytest.raises(ValueError, match='outside of its folder'):
    hf.load(sharded)


def test_the_links_of_the_hub_cache_are_followed(sharded, params, tmp_path):
  # snapshots/<revision>/<file> -> blobs/<hash>. Kills: refusing every link.
  blobs = tmp_path / 'repository' / 'blobs'
  snapshot = tmp_path / 'repository' / 'snapshots' / 'abc'
  blobs.mkdir(parents=True)
  snapshot.mkdir(parents=True)
  for number, path in enumerate(sharded.iterdir()):
    shutil.copy(path, blobs / str(number))
    os.symlink(f'../../blobs/{number}', snapshot / path.name)
  _equal(hf.load(snapshot)[1], params)


def test_an_index_and_its_shards_must_agree(sharded):
  index = sharded / 'model.safetensors.index.json'
  weights = json.loads(index.read_text())['weight_map']
  _edit(index, weight_map=weights | {'ghost': weights['lm_head.weight']})
  with pytest.raises(ValueError, match='lists ghost in model-000'):
    hf.load(sharded)
  _edit(index, weight_map=['model.norm.weight'])
  with pytest.raises(ValueError, match='has no weight_map of file names'):
    hf.load(sharded)
  _edit(index, weight_map=weights)
  (sharded / weights['lm_head.weight']).unlink()
  with pytest.raises(FileNotFoundError, match='a shard is missing'):
    hf.load(sharded)


# Writing.


def test_params_of_another_model_are_not_saved(params, tmp_path):
  with pytest.raises(ValueError, match=r'norm/scale has shape \(3,\)'):
    hf.save(tmp_path / 'm', MODEL, params | {'norm': {'scale': jnp.ones(3)}})
  with pytest.raises(ValueError, match='expected params of structure'):
    hf.save(tmp_path / 'm', MODEL, {'embed': params['embed']})
  with pytest.raises(ValueError, match='parameters cannot be int8: use one'):
    hf.save(tmp_path / 'm', MODEL, params, dtype='int8')
  assert not any(tmp_path.iterdir())


def test_a_save_replaces_a_model_and_leaves_nothing_beside(folder, params):
  # Kills: shards of the old model that stay behind the new one.
  (folder / 'old.txt').write_text('old')
  hf.save(folder, MODEL, params)
  assert not (folder / 'old.txt').exists()
  assert [p.name for p in folder.parent.iterdir()] == ['model']
  _equal(hf.load(folder)[1], params)


def test_a_folder_that_is_no_model_is_never_replaced(tmp_path, params):
  (tmp_path / 'thesis.tex').write_text('years of work')
  with pytest.raises(ValueError, match='is not a model folder'):
    hf.save(tmp_path, MODEL, params)
  assert (tmp_path / 'thesis.tex').exists()


@pytest.mark.parametrize('replaces', [False, True])
def test_a_save_that_fails_leaves_what_was_there(
  folder, params, monkeypatch, replaces
):
  # Kills: writing in place. The failure comes at the last moment.
  target = folder if replaces else folder.parent / 'fresh'

  def fail(path):
    raise OSError('disk full')

  monkeypatch.setattr(files, 'sync', fail)
  with pytest.raises(OSError, match='disk full'):
    hf.save(target, MODEL, jax.tree.map(jnp.zeros_like, params))
  monkeypatch.undo()
  if replaces:
    _equal(hf.load(target)[1], params)
  else:
    assert not target.exists()
  # And what it left beside does not disturb the next attempt.
  hf.save(target, MODEL, params)
  assert not list(folder.parent.glob('.*'))


# Tokenizers and stop tokens.


@pytest.mark.filterwarnings('ignore')  # transformers'
def test_a_tokenizer_travels_with_its_stop_ids(params, tokenizer, tmp_path):
  # Kills: losing the second stop token of a chat model on the way.
  folder = tmp_path / 'model'
  hf.save(folder, MODEL, params, tokenizer=tokenizer, stop_ids=(2,))
  again = hf.load_tokenizer(folder)
  assert again.get_vocab() == tokenizer.get_vocab()
  assert again.eos_token == '<end>'
  assert hf.stop_ids(folder, again) == (1, 2)
  config = json.loads((folder / 'config.json').read_text())
  assert config['eos_token_id'] == 1


def test_stop_ids_come_from_every_file(folder, tokenizer):
  _edit(folder / 'config.json', eos_token_id=7)
  assert hf.stop_ids(folder, tokenizer) == (1, 7)
  (folder / 'generation_config.json').write_text('{"eos_token_id": [9, 7]}')
  assert hf.stop_ids(folder, tokenizer) == (1, 7, 9)


def test_a_model_that_never_stops_is_refused(folder):
  class Endless:
    eos_token_id = None

  with pytest.raises(ValueError, match='has no eos_token_id'):
    hf.stop_ids(folder, Endless())


def test_a_folder_without_a_tokenizer_is_refused(folder):
  # transformers makes up an empty one for such a folder.
  with pytest.raises(FileNotFoundError, match='has no tokenizer: expected'):
    hf.load_tokenizer(folder)


def test_a_fresh_model_is_described_as_in_a_config_file():
  model = hf.fresh(
    dict(
      model_type='qwen3',
      vocab_size=64,
      hidden_size=16,
      num_hidden_layers=2,
      num_attention_heads=4,
      num_key_value_heads=2,
      head_dim=6,
      intermediate_size=24,
      rope_theta=5e4,
      initializer_range=0.3,
    )
  )
  assert model.config == CONFIG
