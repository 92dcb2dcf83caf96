"""A Linen module in the tuple of a model: the example of docs/models.md."""

import pathlib
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jopd import losses, sharding
from jopd.rollout.engine import make_generate
from jopd.rollout.score import score
from jopd.rollout.stop_criteria import make_stops
from jopd.train.learner import make_gradients, make_learn, make_teach
from jopd.train.rollout_batch import RolloutBatch, TeacherInput
from jopd.train.stage import Aggregation
from jopd.train.state import init_state

PAGE = pathlib.Path(__file__).parents[2] / 'docs' / 'models.md'
VOCAB, ROWS, SLOTS, STEPS = 20, 4, 5, 6


@pytest.fixture(scope='module')
def page():
  """What the code of the page defines."""
  (block,) = re.findall(r'^```python\n(.*?)^```', PAGE.read_text(), re.M | re.S)
  module = types.ModuleType('example')
  exec(compile(block, PAGE.name, 'exec'), vars(module))
  return module


def _model(page, width):
  sizes = dict(vocab=VOCAB, heads=2, layers=2, positions=SLOTS + STEPS)
  return page.as_model(page.Decoder(width=width, **sizes))


def test_sampling_and_scoring_agree_for_a_module_of_ones_own(page):
  # Kills: a cache that is read from the wrong slot; positions that count the
  # padding between prompt and response.
  model = _model(page, 16)
  params = model.init(jax.random.key(0))
  prompt = jax.random.randint(jax.random.key(1), (ROWS, SLOTS), 0, VOCAB)
  lengths = jnp.array([5, 1, 3, 2])
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  generate = make_generate(model, mesh, max_new_tokens=STEPS)
  rollout = generate(
    params, prompt, lengths, jax.random.key(2), stops=make_stops(())
  )
  hidden = score(model, params, prompt, lengths, rollout.response)
  logp = jax.nn.log_softmax(hidden @ model.head(params).T)
  want = jnp.take_along_axis(logp, rollout.response[..., None], -1)[..., 0]
  np.testing.assert_allclose(rollout.sampler_logp, want, atol=1e-5, rtol=0)


def test_a_student_of_ones_own_learns_from_a_teacher_of_ones_own(page):
  # Kills: a step that looks into `model.config`, or at names of parameters.
  student, teacher = _model(page, 8), _model(page, 16)
  teachers = {'teacher': teacher}
  tx = optax.adam(3e-2)
  state = init_state(student.init(jax.random.key(0)), tx)
  # Sharp enough to be worth learning.
  frozen = jax.tree.map(lambda x: 2 * x, teacher.init(jax.random.key(1)))
  rng = np.random.default_rng(0)
  ids = lambda *shape: rng.integers(0, VOCAB, shape).astype(np.int32)
  prompt, lengths = ids(ROWS, SLOTS), np.array([5, 1, 3, 2], np.int32)
  batch = RolloutBatch(
    prompt=prompt,
    prompt_length=lengths,
    response=ids(ROWS, STEPS),
    response_length=np.full(ROWS, STEPS, np.int32),
    mask=np.ones((ROWS, STEPS), bool),
    end_reason=np.ones(ROWS, np.int32),
    row=losses.Row(),
    teachers={'teacher': TeacherInput(prompt, lengths)},
    sampler_logp=np.zeros((ROWS, STEPS), np.float32),
  )
  match = losses.Term(losses.divergence(losses.forward_kl))
  gradients = make_gradients(
    student,
    teachers,
    lambda scalars: {'match': match},
    aggregation=Aggregation(losses.token_mean, jnp.sum),
    chunk_tokens=16,
  )
  learn = jax.jit(make_learn(gradients, tx))
  hidden = jax.jit(make_teach(teachers))({'teacher': frozen}, batch)
  scored = batch.teachers['teacher']._replace(hidden=hidden['teacher'])
  batch = batch._replace(teachers={'teacher': scored})
  heads = {'teacher': teacher.head(frozen)}
  state, first = learn(state, heads, batch)
  for _ in range(30):
    state, last = learn(state, heads, batch)
  mean = lambda metrics: metrics['loss'][0] / metrics['loss'][1]
  assert mean(last) < 0.5 * mean(first)
