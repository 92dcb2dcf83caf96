"""Every config of the repository can run, in both of its sizes."""

import importlib.util
import inspect
import pathlib

from ml_collections import ConfigDict
import pytest

from jopd.data import sources
from jopd.data.examples import Example
from jopd.run import build, checks, overrides, resolve

ROOT = pathlib.Path(__file__).parents[1] / 'configs'
FILES = sorted(ROOT.glob('*/*.py'))
SCALE = sorted((ROOT / 'scale').glob('*.py'))
VARIANTS = sorted((ROOT / 'variants').glob('*.py'))
PAPERS = [file for file in FILES if file not in (*SCALE, *VARIANTS)]
named = pytest.mark.parametrize('file', FILES, ids=lambda file: file.stem)


# One config for each shape of a stage; the others are built as slow tests.
SHAPES = {
  *('many_faces/opd', 'many_faces/opsd_rule', 'many_faces/rlvr_teacher'),
  *('variants/distillm2', 'variants/length_curriculum', 'variants/minillm'),
  *('variants/mopd', 'variants/sdpo'),
}


# Kills: a setting that no stage has, a value of another type, a model that a
# stage uses and the config does not have.
@named
def test_the_published_size_is_accepted(file):
  config = overrides.load(str(file))
  checks.check(config)
  checks.check_stages(config)


def few(spec):
  """Settings in which every source has few examples: encoding takes time."""
  if not hasattr(spec, 'items'):
    return spec
  cut = lambda name, value: 96 if name == 'count' else few(value)
  return {name: cut(name, value) for name, value in spec.items()}


def is_slow(file):
  shape = file.relative_to(ROOT).with_suffix('').as_posix() in SHAPES
  return pytest.param(
    file, id=file.stem, marks=() if shape else pytest.mark.slow
  )


def sources_of(settings):
  source = settings.response_source
  return {source} if isinstance(source, str) else {*source}


# Kills: a loss that is refused, and a small size that keeps paths, lengths or
# templates of the published one, or loses its models, sources or terms.
@pytest.mark.parametrize('file', [is_slow(file) for file in FILES])
def test_the_small_size_can_be_built(file, monkeypatch):
  monkeypatch.setattr(build, '_params', lambda *_: {})
  config = overrides.load(f'{file}:tiny')
  for section in (config, *(config[name] for name in config.stages)):
    section.data = ConfigDict(few(section.data.to_dict()))
  built = build.build(config)
  stages = [s for s in built.stages if not s.name.startswith('learn_')]
  published = overrides.load(str(file))
  assert tuple(stage.name for stage in stages) == published.stages
  for stage in stages:
    settings = published[stage.name]
    assert stage.student.model == settings.student
    assert set(stage.teachers.models) == set(settings.teachers)
    assert set(stage.rollouts.sources) == sources_of(settings)
    assert set(config[stage.name].loss) == set(settings.loss)


# Kills: a docstring that goes without a command, or without a result.
@pytest.mark.parametrize('file', PAPERS, ids=lambda file: file.stem)
def test_a_config_says_what_it_is(file):
  text = ' '.join(file.read_text().split('"""')[1].split())
  name = file.relative_to(ROOT.parent).as_posix()
  assert f'jopd train --config={name}:tiny' in text
  assert 'arXiv' in text
  assert 'one difference' in text or name.endswith('/opd.py')
  assert 'Measured, tiny, seed 0: ' in text and '@' not in text
  assert 'not yet measured' in text


# Kills: a variant that names no paper or does not say how to start it, and one
# of the size of a program.
@pytest.mark.parametrize('file', VARIANTS, ids=lambda file: file.stem)
def test_a_variant_says_what_it_changes(file):
  text = ' '.join(file.read_text().split('"""')[1].split())
  name = file.relative_to(ROOT.parent).as_posix()
  assert f'jopd train --config={name}:tiny' in text.replace(' \\', '')
  assert 'arXiv' in text
  assert len(file.read_text().splitlines()) <= 70


# Kills: a misspelt size that becomes the published one.
def test_a_size_that_does_not_exist_is_refused():
  with pytest.raises(ValueError, match="no size 'tin'; did you mean 'tiny'"):
    overrides.load(f'{ROOT}/many_faces/opd.py:tin')


# Heads of the keys, which `tensor` divides; of all models in configs/scale.
_KV_HEADS = 8


def machines(file, monkeypatch):
  monkeypatch.syspath_prepend(ROOT)
  spec = importlib.util.spec_from_file_location('scale', file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.MACHINES


@pytest.mark.parametrize('file', SCALE, ids=lambda file: file.stem)
def test_a_machine_is_used_whole_and_divides_the_work(file, monkeypatch):
  # Kills: a mesh of other devices than the machine has, and rows that it
  # cannot divide, which would be found on the machine, after the loading.
  for name, machine in machines(file, monkeypatch).items():
    config = overrides.load(f'{file}:{name}')
    checks.check(config)
    checks.check_stages(config)
    mesh, stage = config.mesh, config.distil
    assert mesh.data * mesh.fsdp * mesh.tensor == machine['devices']
    assert _KV_HEADS % mesh.tensor == 0
    rows = (
      stage.batch_size * stage.group_size // stage.gradient_accumulation_steps
    )
    for divided in (rows, stage.max_num_seqs, config.eval.batch_size):
      assert divided % (mesh.data * mesh.fsdp) == 0
    for spec in (config.data, config.eval_data, *config.eval_tasks.values()):
      function = getattr(sources, spec.name)
      settings = {key for key in spec if key != 'name'}
      assert settings <= set(inspect.signature(function).parameters)
    resolve.resolve('reward', config.reward)
    context = resolve.resolve('context', config.context)
    turns = [{'role': 'user', 'content': 'What is $1+1$?'}]
    [turn] = context(Example('a', turns))
    assert turn['content'].endswith('your final answer within \\boxed{}.')


@pytest.mark.parametrize('file', SCALE, ids=lambda file: file.stem)
def test_a_config_of_scale_says_what_it_is(file):
  text = ' '.join(file.read_text().split('"""')[1].split())
  name = file.relative_to(ROOT.parent).as_posix()
  assert f'jopd train --config={name}:tiny' in text
  assert 'not yet measured' in text
  with pytest.raises(ValueError, match="no machine 'v2-8'"):
    overrides.load(f'{file}:v2-8')
