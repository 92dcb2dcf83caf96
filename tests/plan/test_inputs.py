"""The shapes that are planned with are those that a run computes with."""

import jax
import pytest
import tiny

from jopd.compilation import Program
from jopd.plan import inputs
from jopd.run import build
from jopd.train import pipeline
from jopd.train.steps import teacher_heads

POLICY = dict(
  objective='policy_gradient',
  surrogate='ppo_clip',
  advantage='group_advantage',
  old_policy='sampler',
)


def _config():
  config = tiny.get_config()
  config.stages = ('distil',)
  config.mesh.data = 8
  config.distil.group_size, config.distil.num_minibatches = 2, 2
  config.distil.loss.reward = POLICY
  config.distil.teacher_contexts.teacher = 'with_answer'
  config.distil.max_teacher_prompt_tokens = 96
  config.distil.teacher_sync.own = dict(name='ema', decay=0.9)
  config.distil.teachers.own = 'student'
  config.distil.rollout.top_p = 0.9
  return config


@pytest.fixture(scope='module')
def seen(tmp_path_factory):
  """Phase -> arguments of its program in a run of one step."""
  calls, call = {}, Program.__call__

  def record(self, *args):
    place = lambda x: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=x.sharding
    )
    calls[self.name] = jax.tree.map(place, args)
    return call(self, *args)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(Program, '__call__', record)
    built = build.build(_config())
    folder = tmp_path_factory.mktemp('run')
    pipeline.train(built.run, built.stages, built.params, folder)
  return calls


@pytest.fixture(scope='module')
def planned():
  config = _config()
  built = build.build_abstract(config, jax.devices())
  (stage,) = built.stages
  own, longer = (
    config.max_prompt_tokens,
    config.distil.max_teacher_prompt_tokens,
  )
  frozen = inputs.frozen(stage, built.run, built.params)
  return dict(
    state=inputs.state(stage, built.run, built.params),
    frozen=frozen,
    heads=teacher_heads(stage, built.run, frozen),
    prompts=inputs.prompts(stage, built.run, config.distil.batch_size, own),
    batch=inputs.batch(
      stage, built.run, 8, {'': own, 'teacher': longer, 'own': own}
    ),
  )


def _same(planned, seen):
  assert jax.tree.structure(planned) == jax.tree.structure(seen)
  for ours, theirs in zip(*map(jax.tree.leaves, (planned, seen)), strict=True):
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    assert ours.sharding.is_equivalent_to(theirs.sharding, len(ours.shape))


# Kills: a plan of another program than the one that runs.
def test_learner_and_teacher_read_what_was_planned(seen, planned):
  state, heads, batch, base, scalars = seen['distil: learner']
  assert base is None and scalars == {}
  _same(planned['state'], state)
  _same(planned['heads'], heads)
  hidden = {role: x.hidden for role, x in batch.teachers.items()}
  _same(inputs.with_hidden(planned['batch'], hidden), batch)
  teachers, scored = seen['distil: teacher']
  _same(planned['frozen'].teachers | planned['state'].teachers, teachers)
  _same(planned['batch'], scored)


def test_the_sampler_reads_what_was_planned(seen, planned):
  params, prompt, length, key, _, sampling, stops = seen['distil: rollout']
  _same(planned['state'].params, params)
  _same(planned['prompts'], (prompt, length, sampling, key, stops))


def test_bytes_are_those_of_one_device(planned):
  embed, response = planned['state'].params['embed'], planned['batch'].response
  assert inputs.local_bytes(embed) == 4 * embed.size
  assert inputs.local_bytes(response) == 4 * response.size / 8
