"""The first number that is not finite is found where it arose."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jopd.run import build
from jopd.train import loop
from jopd.train.faults import first_fault
from jopd.train.steps import Phases
from jopd.train.teachers import freeze


@pytest.fixture(scope='module')
def update():
  """A stage that reads rewards, and all that an update of it reads."""
  config = tiny.get_config()
  config.stages = ('distil',)
  config.distil.group_size = 2
  config.distil.loss.reward = dict(
    objective='policy_gradient',
    surrogate='reinforce',
    advantage='group_advantage',
  )
  run, [stage], params = build.build(config)
  run = run._replace(grade=lambda text, example: len(text) % 2)
  frozen = freeze(stage, run, params)
  state, shardings = loop._start(stage, run, params)
  phases = Phases(stage, run, frozen, shardings)
  prompts = next(stage.prompts.batches)
  how = stage.rollouts.sampling(0, {})
  answers = phases.respond(state, prompts, jax.random.key(0), how)
  grades = phases.grade(prompts, answers)
  [batch] = phases.pack(prompts, answers, grades)
  batch = phases.place(batch, 0)
  hidden = phases.teach(state, batch)
  # As the learner leaves it.
  return stage, run, phases, state._replace(step=state.step + 1), hidden, batch


def _poisoned(tree, *path, value=np.nan):
  """A copy in which one number is another."""
  name, *rest = path
  if rest:
    return tree | {name: _poisoned(tree[name], *rest, value=value)}
  array = tree[name]
  return tree | {name: array.at[(0,) * array.ndim].set(value)}


MLP = 'layers', 'mlp', 'up'


def _reward(phases, state, hidden, batch):
  row = batch.row._replace(reward=batch.row.reward.at[3].set(np.inf))
  return phases, state, hidden, batch._replace(row=row)


def _sampler(phases, state, hidden, batch):
  # The first token is always real.
  poisoned = batch.sampler_logp.at[1, 0].set(-np.inf)
  return phases, state, hidden, batch._replace(sampler_logp=poisoned)


def _teacher(phases, state, hidden, batch):
  return phases, state, _poisoned(hidden, 'teacher'), batch


def _student(phases, state, hidden, batch):
  return (
    phases,
    state._replace(params=_poisoned(state.params, *MLP)),
    hidden,
    batch,
  )


def _overflow(phases, state, hidden, batch):
  # Finite, but their products are not.
  layers = state.params['layers']
  huge = jax.tree.map(lambda x: jnp.full_like(x, 1e38), layers['mlp'])
  params = state.params | {'layers': layers | {'mlp': huge}}
  return phases, state._replace(params=params), hidden, batch


CASES = {
  'a reward': (_reward, 'the batch: row.reward'),
  'a log-prob': (_sampler, 'the batch: sampler_logp'),
  'a teacher': (_teacher, 'hidden states of teacher'),
  'the student': (_student, 'parameters of student: layers.mlp.up'),
  'its products': (_overflow, 'hidden states of student'),
}


# Kills: a search that names what follows, or the first array of a tree.
@pytest.mark.parametrize('kind', CASES)
def test_the_first_fault_is_named(update, kind):
  stage, run, *rest = update
  poison, name = CASES[kind]
  assert first_fault(stage, run, *poison(*rest)) == name


def test_a_poisoned_teacher_is_named_by_its_parameter(update, monkeypatch):
  stage, run, phases, *rest = update
  teachers = _poisoned(phases.frozen.teachers, 'teacher', *MLP)
  frozen = phases.frozen._replace(teachers=teachers)
  monkeypatch.setattr(phases, 'frozen', frozen)
  found = first_fault(stage, run, phases, *rest)
  assert found == 'parameters of teacher: layers.mlp.up'


# What the loss makes of sound numbers. Kills: a search that ends before it.
@pytest.mark.parametrize('kind', ['term', 'gradient', 'nothing'])
def test_a_loss_that_breaks_down_is_named(update, monkeypatch, kind):
  stage, run, phases, *rest = update
  whole = phases.gradients

  def broken(state, *args):
    gradients, loss, metrics = whole(state, *args)
    if kind == 'term':
      metrics |= {'loss/reward': (jnp.nan, 1)}
    if kind == 'gradient':
      gradients = _poisoned(gradients, *MLP, value=jnp.inf)
    return gradients, loss, metrics

  monkeypatch.setattr(phases, 'gradients', broken)
  expected = {
    'term': 'a term of the loss: loss/reward',
    'gradient': 'the gradient of student: layers.mlp.up',
    'nothing': '',
  }
  assert first_fault(stage, run, phases, *rest) == expected[kind]
