"""`jopd plan` from a config to a verdict, on the devices that are here."""

import itertools
import json
import pathlib

import jax
import pytest
import tiny

from jopd.cli import main
from jopd.data.tokenizer import builtin_tokenizer
from jopd.models import hf
from jopd.plan import decoding
from jopd.plan.phases import measure
from jopd.plan.plan import SIZES, without_weights
from jopd.run import build, overrides
from jopd.run.config import ConfigError

FILE = """
import tiny

def get_config():
  config = tiny.get_config()
  config.mesh.data = -1
  return config
"""


@pytest.fixture
def jopd(tmp_path, capsys):
  """Runs `jopd plan`; its exit code, standard output and standard error."""
  path = tmp_path / 'tiny_plan.py'
  path.write_text(FILE)

  def jopd(*flags):
    with pytest.raises(SystemExit) as exit:
      main.run(['plan', f'--config={path}', *flags])
    return exit.value.code, *capsys.readouterr()

  return jopd


def _phases(config):
  """The phases of the first stage, compiled one by one."""
  run, stages, params = build.build_abstract(config, jax.devices())
  widths = dict.fromkeys(('', 'teacher'), config.max_prompt_tokens)
  return measure(stages[0], run, params, prompts=8, widths=widths)


def _rollout(layers, depths, monkeypatch):
  """The phases of a rollout with a model so deep."""
  monkeypatch.setattr(decoding, 'DEPTHS', depths)
  config = tiny.get_config()
  config.mesh.data = -1
  config.stages = ('distil',)
  config.models.student = tiny.SIZE | dict(num_hidden_layers=layers)
  return list(itertools.islice(_phases(config), 2))


# Kills: a layer too many or too few, what does not grow taken for what does.
def test_a_deep_model_follows_from_two_shallow_ones(monkeypatch):
  whole = _rollout(4, (3, 4), monkeypatch)
  drawn = _rollout(4, (1, 2), monkeypatch)
  assert [p.name for p in drawn] == ['prefill', 'decode']
  for ours, theirs in zip(drawn, whole, strict=True):
    assert ours.flops == pytest.approx(theirs.flops)
    assert ours.least == pytest.approx(theirs.least)
    assert ours.memory['inputs'] == pytest.approx(theirs.memory['inputs'])
    assert ours.cost.traffic == pytest.approx(theirs.cost.traffic, rel=0.1)


# Kills: phases that are left out, or counted for all devices instead of one.
def test_every_phase_of_a_stage_is_planned(jopd):
  code, out, _ = jopd('--json', "--config.stages=('distil',)")
  found = json.loads(out)
  assert (code, found['status'], found['chip']) == (0, 'ok', None)
  assert found['devices'] == found['mesh']['data'] == 8
  (distil,) = found['stages']
  names = [p['name'] for p in distil['phases']]
  assert names == ['prefill', 'decode', 'teacher', 'learner']
  prefill, decode, _, learner = distil['phases']
  assert decode['times'] == 16 and learner['times'] == 1
  assert learner['memory']['held'] == prefill['memory']['held'] > 0
  assert learner['useful'] == learner['flops']  # nothing is recomputed


def test_the_page_is_for_people(jopd):
  code, out, err = jopd("--config.stages=('warm',)")
  assert code == 0 and 'compiled warm: learner' in err
  assert '8 devices of an unknown chip; mesh: data 8 x fsdp 1' in out
  assert 'warm: 8 responses of 16 tokens in a step' in out
  assert out.endswith('compiles\n')


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--topology=v5q:2x2'], "did you mean 'v5p'"),
    (['--topology=v5e'], "expected a TPU and a shape, such as 'v5p:4x4x4'"),
    (['--config.mesh.data=3'], 'a mesh of data = 3'),
  ],
)
def test_what_cannot_be_planned_is_refused(flags, message, jopd):
  code, _, err = jopd(*flags)
  assert code == 2 and message in err and err.count('\n') == 1


# Kills: layers that are counted while they wait in host memory, and not while
# they are used.
def test_a_teacher_in_host_memory_is_held_while_it_scores():
  config = tiny.get_config()
  config.stages, config.distil.response_source = ('distil',), 'dataset'
  there = next(_phases(config))
  config.distil.teacher_memory = 'host'
  waiting = next(_phases(config))
  size = waiting.memory['inputs'] - there.memory['inputs']
  # q and o of 2 heads, k and v of one, gate, up and down, four norms; float32.
  assert size == 4 * (2 * 256 + 2 * 128 + 3 * 512 + 2 * 16 + 2 * 8)
  assert there.memory['held'] - waiting.memory['held'] == size


# Kills: a model that stays although no stage to come uses it.
def test_models_of_later_stages_are_held():
  config = tiny.get_config()
  both = next(_phases(config))
  config.stages = ('warm',)
  alone = next(_phases(config))
  model = hf.fresh({'vocab_size': len(builtin_tokenizer()), **tiny.SIZE})
  shapes = jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0)))
  size = 4 * sum(x.size for x in shapes)
  assert both.memory['held'] - alone.memory['held'] == size


# Of real models only the sizes are needed.

SCALE = sorted(pathlib.Path(__file__).parents[2].glob('configs/scale/*.py'))


# Kills: a plan that waits for weights, tokenizers or data.
@pytest.mark.parametrize('file', SCALE, ids=lambda file: file.stem)
def test_configs_at_scale_are_planned_without_their_models(file):
  config = without_weights(overrides.load(str(file)))
  config.mesh.update(data=-1, fsdp=1, tensor=1)
  config.distil.max_num_seqs = 0
  built = build.build_abstract(config, jax.devices())
  assert built.run.models['student'].vocab_size == 151_936
  large = overrides.load(str(file))
  width = SIZES[large.models.student.path]['hidden_size']
  assert built.params['student']['embed'].shape[1] == width
  assert built.stages[0].rollouts.group_size == large.distil.group_size


def test_of_a_folder_only_its_config_is_read(tmp_path):
  folder = tiny.save_model(tmp_path / 'model')
  for file in pathlib.Path(folder).iterdir():
    if file.name != 'config.json':
      file.unlink()
  config = tiny.get_config()
  config.models.teacher = dict(path=folder)
  found = without_weights(config)
  assert found.models.teacher.hidden_size == tiny.SIZE['hidden_size']
  assert config.models.teacher.path == folder
  build.build_abstract(found, jax.devices()[:1])


def test_a_config_of_sizes_stays_as_it_is():
  assert without_weights(tiny.get_config()) == tiny.get_config()


def test_a_model_without_a_config_is_refused(tmp_path):
  config = tiny.get_config()
  config.models.teacher = dict(path=str(tmp_path))
  with pytest.raises(ConfigError, match=r'models\.teacher: .*config\.json'):
    without_weights(config)
