"""EffOPD: which places are scored, and what is moved."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jopd import sharding
from jopd.papers import effopd
from jopd.train.callbacks import Setup, StepContext
from jopd.train.state import init_state


def test_examples_print_what_they_show():
  assert doctest.testmod(effopd).failed == 0


# The rule as it is published: a = 2 at first, then a / (1 + a) of the way that
# has grown. Kills: distances in units of the grown way.
def test_places_are_those_of_the_published_rule():
  origin, student = 1.0, 1.5
  here, a, published = student, 2.0, []
  for _ in range(5):
    here += a * (here - origin)
    published.append(here)
    a /= 1 + a
  places = []
  effopd.line_search(lambda far: places.append(far) or len(places), 2.0, 5)
  places = [student + far * (student - origin) for far in places[1:]]
  np.testing.assert_allclose(places, published)


@pytest.mark.parametrize(
  ('scores', 'best', 'tries'),
  [
    ([0.5, 0.4], 0.0, 1),
    ([0.5, 0.5], 0.0, 1),  # no better is not better
    ([0.5, 0.6, 0.6], 2.0, 2),
    ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], 10.0, 5),
  ],
)
def test_it_ends_where_the_score_does_not_improve(scores, best, tries):
  left = list(scores)
  found, seen = effopd.line_search(lambda far: left.pop(0), 2.0, 5)
  assert (found, left) == (best, [])
  assert seen == scores and len(seen) == 1 + tries


# No way is no change, to the last bit.
def test_weights_that_have_not_moved_stay():
  tree = {'mlp': {'up': jax.random.normal(jax.random.key(0), (5, 3))}}
  moved = effopd.extrapolate(tree, tree, 6.0)
  np.testing.assert_array_equal(moved['mlp']['up'], tree['mlp']['up'])


# Kills: another origin, one that is donated with the parameters, norms and
# embeddings that move, a place that is scored but not taken, and a step that is
# no power of two.
def test_a_stage_goes_on_from_the_best_place():
  import optax

  mesh = sharding.make_mesh(data=-1)
  tree = lambda x: jax.device_put(
    {
      'layers': {'mlp': {'up': jnp.full(4, x)}},
      'norm': jnp.full(2, x),
    },
    sharding.replicated(mesh),
  )
  scored, rewards = [], iter((0.1, 0.2, 0.2))

  def measure(params, max_new_tokens):
    scored.append(jax.device_get(params))
    return {'reward': next(rewards)}

  setup = Setup(
    'far', 'distil', 9, mesh, jax.random.key(0), measure, trained=tree(0.0)
  )
  callback = effopd.extrapolate_weights(setup)
  origin, tx = init_state(tree(1.0), optax.sgd(0.1)), optax.sgd(0.1)
  callback.start(origin)
  state = init_state(tree(1.5), tx)
  context = StepContext(3, state, {'max_new_tokens': None}, [], dict)
  callback.after_step(context)
  assert context.state is state and not scored
  context = StepContext(4, state, {'max_new_tokens': None}, [], dict)
  callback.after_step(context)
  params = context.state.params
  np.testing.assert_allclose(
    params['layers']['mlp']['up'], 2.5
  )  # 1.5 + 2 * 0.5
  np.testing.assert_array_equal(params['norm'], 1.5)
  up = [x['layers']['mlp']['up'][0] for x in scored]
  np.testing.assert_allclose(up, [1.5, 2.5, 3.5])
  assert context.metrics['extrapolation/distance'] == 2.0
  assert context.metrics['extrapolation/reward_after'] == 0.2
  jax.tree.map(lambda x: x.delete(), params)
  kept = callback.arrays()  # a copy
  np.testing.assert_allclose(kept['layers']['mlp']['up'], 2.5)


def test_settings_out_of_range_are_refused():
  setup = Setup('far', 'distil', 9, sharding.make_mesh(data=-1), None)
  for settings, message in (
    (dict(reach=0.0), 'reach must be above 0'),
    (dict(), 'set held_out'),
  ):
    with pytest.raises(ValueError, match=message):
      effopd.extrapolate_weights(setup, **settings)
