"""Any number of a term may follow the step."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jopd import losses
from jopd.run import resolve
from jopd.run.schedules import at_step

V = 8
RAMP = dict(schedule='linear_schedule', init_value=0.0, end_value=1.0)


def ramp(**settings):
  return RAMP | dict(transition_steps=4) | settings


def policy(credit, **settings):
  return dict(
    objective='policy_gradient', surrogate='reinforce', advantage=credit
  ) | dict(settings)


def make(spec, **settings):
  return resolve.make_terms({'a': spec}, ['teacher'], V, **settings)


def terms_of(spec, step=0):
  return {'a': resolve.make_term(spec, step)}


def batch_of_rows():
  keys = jax.random.split(jax.random.key(0), 3)
  logp = lambda k: losses.log_probs(jax.random.normal(k, (2, 3, V)))
  return losses.TokenBatch(
    logp(keys[0]),
    {'teacher': logp(keys[1])},
    token=jax.random.randint(keys[2], (2, 3), 0, V),
    sampler_logp=jnp.full((2, 3), -1.5),
  )


# From a Python step come Python floats, which settings are compared and kept
# with. Kills a schedule that is not found below the first level, and keys of a
# file, which are text, taken for steps.
def test_settings_at_a_step():
  phases = dict(
    schedule='piecewise_constant_schedule',
    init_value=4.0,
    boundaries_and_scales={'10': 0.5, '20': 0.5},
  )
  spec = dict(coef=ramp(), advantage=dict(name='x', advantage=dict(low=phases)))
  for step, low in ((0, 4.0), (11, 2.0), (50, 1.0)):
    coef = min(step / 4, 1.0)
    want = dict(coef=coef, advantage=dict(name='x', advantage=dict(low=low)))
    assert at_step(spec, step) == want
    assert isinstance(at_step(spec, step)['coef'], float)


# gamma 0, 1/2, 1 at steps 0, 2, 4: the loss of each equals that of the number.
# Kills a value that is frozen at the first step, and a trace for each step.
def test_a_scheduled_setting_follows_the_step_without_a_retrace():
  discounted = lambda gamma: dict(name='discounted_return', gamma=gamma)
  gate = lambda low: dict(name='gate', of='log_ratio', low=low)
  spec = lambda x: policy(discounted(x), weight=gate(x))
  traces = itertools.count()
  batch, mask = batch_of_rows(), jnp.ones((2, 3), bool)

  def loss(spec, step):
    next(traces)
    terms = terms_of(spec, step)
    return losses.distill_loss(batch, terms, mask=mask, count=6)

  scheduled = jax.jit(functools.partial(loss, spec(ramp())))
  got = [float(scheduled(jnp.int32(step))) for step in (0, 2, 4)]
  assert next(traces) == 1
  fixed = [jax.jit(lambda x=x: loss(spec(x), 0))() for x in (0.0, 0.5, 1.0)]
  np.testing.assert_allclose(got, fixed, rtol=1e-6)
  assert len({round(x, 4) for x in got}) == 3


# The chunked loss has rules of its own about what it may close over. Kills a
# traced setting that does not reach it, or reaches its first chunk only.
def test_a_scheduled_setting_reaches_every_chunk():
  keys = jax.random.split(jax.random.key(1), 3)
  hidden, other = jax.random.normal(keys[0], (2, 2, 4, 5))
  head = jax.random.normal(keys[1], (V, 5))
  token = jax.random.randint(keys[2], (2, 4), 0, V)

  def loss(hidden, spec, step):
    return losses.distill_loss_chunked(
      hidden,
      head,
      {'teacher': (other, head)},
      token,
      jnp.zeros((2, 4)),
      terms_of(spec, step),
      mask=jnp.ones((2, 4), bool),
      count=8,
      chunk_tokens=2,
    )[0]

  spec = lambda x: policy(dict(name='clip', low=x))
  of_spec = lambda spec: jax.jit(lambda s: jax.grad(loss)(hidden, spec, s))
  scheduled = of_spec(spec(ramp(init_value=-1.0)))
  for step, low in ((0, -1.0), (4, 1.0)):
    fixed = of_spec(spec(low))(0)
    got = scheduled(jnp.int32(step))
    np.testing.assert_allclose(got, fixed, rtol=1e-4, atol=1e-6)


# Kills a check of where a schedule begins only, and one of where it would be
# after the last step.
def test_a_schedule_that_leaves_its_range_is_refused():
  spec = policy(dict(name='discounted_return', gamma=ramp(end_value=2.0)))
  make(spec, last=2)
  with pytest.raises(
    ValueError, match=r'terms\.a: gamma must be in .* got 2.0'
  ):
    make(spec, last=4)


# Kills an error of the tracer's, and waiting for the first step.
def test_a_schedule_of_what_decides_a_shape_is_refused():
  spec = dict(
    objective='divergence',
    divergence='reverse_kl',
    support=dict(name='top_k', k=ramp(init_value=2, end_value=4)),
  )
  with pytest.raises(
    ValueError, match=r'terms\.a: a schedule stands for a num'
  ):
    make(spec)
