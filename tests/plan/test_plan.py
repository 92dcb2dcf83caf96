"""`jopd plan` from a config to a verdict, on the devices that are here."""

import json

import pytest
import tiny

from jopd import main
from jopd.plan import decoding
from jopd.plan.plan import plan

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


def _rollout(layers, depths, monkeypatch):
  """The phases of a rollout with a model so deep."""
  monkeypatch.setattr(decoding, 'DEPTHS', depths)
  config = tiny.get_config()
  config.mesh.data = -1
  config.stages = ('distil',)
  config.models.student = tiny.SIZE | dict(num_hidden_layers=layers)
  (stage,) = plan(config, say=lambda line: None).stages
  return stage.phases[:2]


# Kills: a layer too many or too few, what does not grow taken for what does.
def test_a_deep_model_follows_from_two_shallow_ones(monkeypatch):
  whole = _rollout(5, (5, 6), monkeypatch)
  drawn = _rollout(5, (2, 3), monkeypatch)
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
