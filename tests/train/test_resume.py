"""A run that is stopped after every step ends with the same bytes."""

import contextlib
import signal

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jopd.rewards import Reward
from jopd.run import config as configs
from jopd.train import pipeline
from jopd.train.errors import Stopped

MATCH = dict(match=dict(objective='divergence', divergence='reverse_kl'))
GRPO = dict(
  objective='policy_gradient',
  surrogate=dict(name='ppo_clip', low=0.2, high=0.28),
  advantage='group_advantage',
  old_policy='sampler',
)
STAGES = dict(
  warm=dict(
    response_source='dataset',
    steps=2,
    batch_size=8,
    loss=dict(demo=dict(objective='negative_log_likelihood')),
  ),
  # Two updates a step; one of them is skipped.
  rl=dict(
    steps=2, batch_size=8, group_size=2, num_minibatches=2, loss=dict(grpo=GRPO)
  ),
  distil=dict(
    steps=1, batch_size=8, teachers=dict(teacher='teacher'), loss=MATCH
  ),
  # The student's own average, which reads more.
  own=dict(
    steps=2,
    batch_size=8,
    teachers=dict(teacher='student'),
    teacher_sync=dict(teacher=dict(name='ema', decay=0.9)),
    teacher_contexts=dict(teacher=dict(name='with_system', prompt='Be brief.')),
    max_teacher_prompt_tokens=48,
    loss=MATCH,
  ),
  adapt=dict(
    steps=2,
    batch_size=8,
    teachers=dict(teacher='teacher'),
    lora=dict(rank=2, targets=('q', 'up')),
    loss=MATCH,
  ),
)


def _reward(response, example):
  """The share of small letters; the reward of one example is not a number."""
  if example.id == 'running_sum/train/8':
    return Reward(float('nan'))
  letters = sum('a' <= c <= 'z' for c in response.text)
  return Reward(letters / max(1, len(response.text)))


def _once_after(steps):
  """A signal that comes when a process has done so many steps."""
  asked = iter(range(steps))
  return lambda: 0 if next(asked, None) is not None else signal.SIGTERM


def _train(make_tiny, names, workdir, stop=lambda: 0):
  sections = {n: configs.stage(**settings) for n, settings in STAGES.items()}
  built = make_tiny(**sections, stages=names)
  run = built.run._replace(should_stop=stop, reward=_reward)
  return pipeline.train(run, built.stages, built.params, workdir)


def _left(workdir, names):
  """What a run leaves that no interruption may change."""
  states = {}
  with contextlib.closing(
    ocp.Checkpointer(ocp.CompositeCheckpointHandler())
  ) as reader:
    for name in names:
      path = workdir / name / 'checkpoints' / str(STAGES[name]['steps'])
      args = ocp.args.Composite(
        state=ocp.args.StandardRestore(), resume=ocp.args.JsonRestore()
      )
      saved = reader.restore(path, args=args)
      states[name] = saved.state, saved.resume
  weights = [
    (workdir / name / 'model' / 'model.safetensors').read_bytes()
    for name in names
  ]
  return (workdir / 'metrics.jsonl').read_bytes(), weights, states


# One process, then as many as there are steps: each takes the next step, saves
# and leaves, also where a stage begins. Kills: anything of parameters, moments,
# followers, adapters, keys, data, skipped updates or rows that is not restored.
@pytest.mark.parametrize(
  ('devices', 'names'), [(1, tuple(STAGES)), (8, ('warm', 'rl'))]
)
def test_a_run_may_stop_after_every_step(
  make_tiny, tmp_path, monkeypatch, devices, names
):
  here = jax.devices()[:devices]
  monkeypatch.setattr(jax, 'devices', lambda: here)
  whole = _train(make_tiny, names, tmp_path / 'whole')
  assert whole['stages']['rl']['skipped'] == 1
  cut = tmp_path / 'cut'
  for step in range(sum(STAGES[name]['steps'] for name in names)):
    with pytest.raises(Stopped, match=r'SIGTERM: .* is saved at step'):
      _train(make_tiny, names, cut, _once_after(1 if step else 0))
  ended = _train(make_tiny, names, cut)
  assert ended['params_sha256'] == whole['params_sha256']
  rows, weights, states = _left(tmp_path / 'whole', names)
  rows_cut, weights_cut, states_cut = _left(cut, names)
  assert rows == rows_cut
  assert weights == weights_cut
  jax.tree.map(np.testing.assert_array_equal, states, states_cut)
