"""`jopd plan` from a config to a verdict, on the devices that are here."""

import json

import jax
import pytest
import tiny

from jopd.cli import main
from jopd.data.tokenizer import builtin_tokenizer
from jopd.models import hf
from jopd.plan import decoding
from jopd.plan.phases import measure
from jopd.plan.plan import plan
from jopd.run import build

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


def _first(config):
  """The first phase of the first stage."""
  run, stages, params = build.build_abstract(
    config, jax.devices(), say=lambda line: None
  )
  widths = dict.fromkeys(('', 'teacher'), config.max_prompt_tokens)
  say = lambda line: None
  phases = measure(stages[0], run, params, prompts=8, widths=widths, say=say)
  return next(phases)


# Kills: layers that are counted where they only pass by, and not counted where
# they are.
def test_a_teacher_that_waits_on_the_hosts_is_held_while_it_scores():
  config = tiny.get_config()
  config.stages, config.distil.response_source = ('distil',), 'dataset'
  there = _first(config)
  config.distil.teacher_memory = 'host'
  waiting = _first(config)
  size = waiting.memory['inputs'] - there.memory['inputs']
  # q and o of 2 heads, k and v of one, gate, up and down, four norms; float32.
  assert size == 4 * (2 * 256 + 2 * 128 + 3 * 512 + 2 * 16 + 2 * 8)
  assert there.memory['held'] - waiting.memory['held'] == size


# Kills: a model that stays although no stage to come uses it.
def test_models_of_later_stages_are_held():
  config = tiny.get_config()
  both = _first(config)
  config.stages = ('warm',)
  alone = _first(config)
  model = hf.fresh({'vocab_size': len(builtin_tokenizer()), **tiny.SIZE})
  shapes = jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0)))
  size = 4 * sum(x.size for x in shapes)
  assert both.memory['held'] - alone.memory['held'] == size
