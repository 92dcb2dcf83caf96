"""What a plan needs of real models: their sizes, and nothing else."""

import pathlib

import jax
import pytest
import tiny

from jopd.plan.sketch import SIZES, sketch
from jopd.run import build, overrides

SCALE = sorted(pathlib.Path(__file__).parents[2].glob('configs/scale/*.py'))


# Kills: a plan that waits for weights, tokenizers or data.
@pytest.mark.parametrize('file', SCALE, ids=lambda file: file.stem)
def test_configs_at_scale_are_outlined_without_their_models(file):
  config = sketch(overrides.load(str(file)))
  config.mesh.update(data=-1, fsdp=1, tensor=1)
  config.distil.max_num_seqs = 0
  built = build.build_abstract(config, jax.devices())
  assert built.run.models['student'].vocab_size == 151_936
  large = overrides.load(str(file))
  width = SIZES[large.models.student.path]['hidden_size']
  assert built.params['student']['embed'].shape[1] == width
  assert built.stages[0].group_size == large.distil.group_size


def test_of_a_folder_only_its_config_is_read(tmp_path):
  folder = tiny.save_model(tmp_path / 'model')
  for file in pathlib.Path(folder).iterdir():
    if file.name != 'config.json':
      file.unlink()
  config = tiny.get_config()
  config.models.teacher = dict(path=folder)
  found = sketch(config)
  assert found.models.teacher.hidden_size == tiny.SIZE['hidden_size']
  assert config.models.teacher.path == folder
  build.build_abstract(found, jax.devices()[:1])


def test_a_config_of_sizes_stays_as_it_is():
  assert sketch(tiny.get_config()) == tiny.get_config()


def test_a_model_without_a_config_is_refused(tmp_path):
  config = tiny.get_config()
  config.models.teacher = dict(path=str(tmp_path))
  with pytest.raises(FileNotFoundError, match=r'config\.json'):
    sketch(config)
