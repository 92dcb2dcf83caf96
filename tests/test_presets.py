"""Every config of the repository can run, in both of its sizes."""

import pathlib

import pytest

from jopd import build, checks, presets, recipe
from jopd import config as configs

ROOT = pathlib.Path(__file__).parents[1] / 'configs'
FILES = sorted(ROOT.glob('*/*.py'))
named = pytest.mark.parametrize('file', FILES, ids=lambda file: file.stem)


# Kills: a setting that no stage has, a loss that is refused, a model that no
# stage knows. Their data and weights are nobody's here.
@named
def test_the_published_size_is_sound(file):
  config = configs.load(str(file))
  checks.check(config)
  checks.check_stages(config)
  for name in config.stages:
    recipe.make_terms(
      config[name].terms.to_dict(),
      tuple(config[name].teachers),
      384,
      micro_batches=config[name].micro_batches,
      group_size=config[name].group_size,
    )


# Kills: a small form that leaves paths, lengths or templates of the large one.
@named
def test_the_small_size_can_be_built(file):
  config = configs.load(f'{file}:tiny')
  built = build.build(config, say=lambda line: None)
  recipe_stages = [s for s in built.stages if not s.name.startswith('learn_')]
  large = configs.load(str(file))
  assert tuple(stage.name for stage in recipe_stages) == large.stages
  for stage in recipe_stages:
    full = large[stage.name]
    assert stage.source == full.source and stage.student == full.student
    assert set(stage.teachers) == set(full.teachers)


# Kills: a docstring that goes without a command, or without a result.
@named
def test_a_config_says_what_it_is(file):
  text = ' '.join(file.read_text().split('"""')[1].split())
  name = file.relative_to(ROOT.parent).as_posix()
  assert f'jopd train --config={name}:tiny' in text
  assert 'arXiv' in text
  assert 'one difference' in text or name.endswith('/opd.py')
  assert 'Measured, tiny, seed 0: ' in text and '@' not in text
  assert 'not yet measured' in text


def test_a_size_that_is_none_is_refused():
  with pytest.raises(ValueError, match="no size 'tin'; did you mean 'tiny'"):
    presets.mathematics('tin')
