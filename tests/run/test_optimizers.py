"""Optimizers by name: rates by hand, arguments that arrive, names refused."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jopd.run import config as configs
from jopd.run.optimizers import make_optimizer


def settings(**changed):
  return configs.stage(learning_rate=0.4, steps=11, **changed)


@pytest.mark.parametrize(
  'decay, after',
  [
    # 8 steps are left after 3 of warm-up; 4 of them are half of the way.
    ('constant', {7: 0.4, 11: 0.4}),
    ('linear', {5: 0.3, 7: 0.2, 11: 0.0}),
    ('cosine', {5: 0.2 * (1 + math.cos(math.pi / 4)), 7: 0.2, 11: 0.0}),
  ],
)
def test_learning_rate_by_hand(decay, after):
  # Warm-up: 0.4 * (t + 1) / 4. Kills: a first step at rate 0, and a decay that
  # counts the steps of the warm-up.
  _, rate = make_optimizer(settings(decay=decay, warmup_steps=3))
  expected = {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.4} | after
  for step, value in expected.items():
    assert float(rate(step)) == pytest.approx(value, abs=1e-6)


def test_without_warmup_the_first_step_has_the_whole_rate():
  _, rate = make_optimizer(settings())
  assert float(rate(0)) == pytest.approx(0.4)


def update(config, gradient):
  tx, _ = make_optimizer(config)
  gradient = jnp.asarray(gradient)
  return tx.update(gradient, tx.init(gradient), gradient)[0]


def test_clipping_scales_a_long_gradient_and_leaves_a_short_one():
  # |(3, 4)| = 5 is scaled to 2; sgd multiplies by -0.4.
  # Kills: clipping each element, and clipping after the learning rate.
  sgd = dict(optimizer=dict(name='sgd'))
  clipped = update(settings(max_grad_norm=2.0, **sgd), [3.0, 4.0])
  np.testing.assert_allclose(clipped, [-0.48, -0.64], rtol=1e-6)
  short = update(settings(max_grad_norm=6.0, **sgd), [3.0, 4.0])
  np.testing.assert_allclose(short, [-1.2, -1.6], rtol=1e-6)
  free = update(settings(max_grad_norm=0.0, **sgd), [3.0, 4.0])
  np.testing.assert_allclose(free, [-1.2, -1.6], rtol=1e-6)


def test_arguments_reach_the_optimizer():
  # Two steps of momentum 0.5 on a gradient of 1: 1 and 1.5 times -0.4.
  # Kills: arguments that are checked, then forgotten.
  config = settings(optimizer=dict(name='sgd', momentum=0.5), max_grad_norm=0.0)
  tx, _ = make_optimizer(config)
  one = jnp.ones(1)
  _, state = tx.update(one, tx.init(one))
  second, _ = tx.update(one, state)
  np.testing.assert_allclose(second, [-0.6], rtol=1e-6)


def test_the_first_moment_may_take_two_bytes():
  # Kills: a dtype that optax is not told, or that the second step widens.
  def run(**adam):
    tx, _ = make_optimizer(settings(optimizer=dict(name='adam', **adam)))
    weights = jnp.zeros(64)
    state = tx.init(weights)
    for gradient in (jnp.linspace(-1, 1, 64), jnp.linspace(0.3, 1, 64)):
      updates, state = tx.update(gradient, state, weights)
    return updates, sum(x.nbytes for x in jax.tree.leaves(state))

  (wide, bytes_wide), (narrow, bytes_narrow) = run(), run(mu_dtype='bfloat16')
  assert bytes_wide - bytes_narrow == 2 * 64
  # Both moments are of the order of the update; bfloat16 has 8 bits.
  off = np.abs(np.asarray(narrow - wide))
  assert 0 < off.max() < 2**-8 * np.abs(np.asarray(wide)).max() * 2


@pytest.mark.parametrize(
  'changed, part',
  [
    (dict(optimizer=dict(name='adamv')), "no optimizer 'adamv'; did you mean"),
    (dict(optimizer=dict(b2=0.9)), "no optimizer ''; choose from adabelief"),
    (
      dict(optimizer=dict(name='adam', weight_dekay=1)),
      "optax.adam has no setting 'weight_dekay'",
    ),
    (
      dict(optimizer=dict(name='sgd', learning_rate=1)),
      "optax.sgd has no setting 'learning_rate'",
    ),
    (dict(decay='cosin'), "did you mean 'cosine'?"),
  ],
)
def test_a_wrong_optimizer_is_refused(changed, part):
  with pytest.raises(ValueError) as error:
    make_optimizer(settings(**changed))
  assert part in str(error.value)


def test_optimizers_can_be_named_but_not_their_parts():
  # Kills: scale_by_learning_rate, which has a learning rate but optimizes
  # nothing.
  for name in ('adam', 'adamw', 'adafactor', 'lion', 'sgd'):
    make_optimizer(settings(optimizer=dict(name=name)))
  with pytest.raises(ValueError, match='optax has no optimizer'):
    make_optimizer(settings(optimizer=dict(name='scale_by_learning_rate')))


def test_schedules_count_updates():
  # 11 steps of 2 updates, 3 of them warm-up: half of the other 19 later the
  # rate is half. Kills: a rate that is 0 when half of the updates are made.
  _, rate = make_optimizer(
    settings(updates=2, decay='linear', warmup_steps=3, batch_size=8)
  )
  for update_, value in {2: 0.3, 3: 0.4, 12.5: 0.2, 22: 0.0}.items():
    assert float(rate(update_)) == pytest.approx(value, abs=1e-6)
