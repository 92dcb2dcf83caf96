"""Looking ahead: where a rule looks, and what is moved."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jopd.train import weight_extrapolation
from jopd.train.callbacks import Course
from jopd.train.metrics import MetricsLog
from jopd.train.state import TrainState
from jopd.train.update_guard import init_guard


def test_examples_print_what_they_say():
  assert doctest.testmod(weight_extrapolation).failed == 0


# The rule as it is published: a = 2 at first, then a / (1 + a) of the way that
# has grown. Kills: distances in units of the grown way.
def test_places_are_those_of_the_published_rule():
  origin, student = 1.0, 1.5
  here, a, published = student, 2.0, []
  for _ in range(5):
    here += a * (here - origin)
    published.append(here)
    a /= 1 + a
  scores, places = [0.0], []
  while (further := weight_extrapolation.line_search(8, scores)) is not None:
    places.append(student + further * (student - origin))
    scores.append(float(len(scores)))
  np.testing.assert_allclose(places, published)


@pytest.mark.parametrize(
  ('scores', 'best', 'looked'),
  [
    ([0.5, 0.4], 0.0, 1),
    ([0.5, 0.5], 0.0, 1),  # no better is not better
    ([0.5, 0.6, 0.6], 2.0, 2),
    ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], 10.0, 5),
  ],
)
def test_it_ends_where_the_score_does_not_improve(scores, best, looked):
  left = list(scores)
  found, seen = weight_extrapolation.look(
    weight_extrapolation.line_search, 4, lambda further: left.pop(0)
  )
  assert (found, left) == (best, [])
  assert seen == dict(
    score_before=scores[0],
    score_after=max(scores),
    looked=looked,
    further=best,
  )


def test_it_is_time_at_powers_of_two():
  due = [
    n
    for n in range(1, 20)
    if weight_extrapolation.line_search(n, []) is not None
  ]
  assert due == [1, 2, 4, 8, 16]
  assert weight_extrapolation.look(
    weight_extrapolation.line_search, 3, float
  ) == (0.0, {})
  with pytest.raises(ValueError, match='reach must be above 0'):
    weight_extrapolation.line_search(1, [], reach=0.0)


# No way is no change, to the last bit.
def test_weights_that_have_not_moved_stay():
  tree = {'mlp': {'up': jax.random.normal(jax.random.key(0), (5, 3))}}
  moved = weight_extrapolation.extrapolate(tree, tree, 6.0)
  np.testing.assert_array_equal(moved['mlp']['up'], tree['mlp']['up'])


# Kills: another origin, one that is donated with the parameters, norms and
# embeddings that move, and a place that is scored but not taken.
def test_a_stage_goes_on_from_the_best_place(make_tiny, tmp_path):
  built = make_tiny(
    **{
      'stages': ('distil',),
      'distil.held_out': 8,
      'distil.weight_extrapolation': 'line_search',
    }
  )
  scored, rewards = [], iter((0.1, 0.2, 0.2))

  def held_out(params, limit):
    scored.append(jax.device_get(params))
    return {'reward': next(rewards)}

  [stage] = built.stages
  stage = stage._replace(held_out=held_out)
  origin, params = built.params['student'], built.params['teacher']
  where = jax.tree.map(lambda x: x.sharding, params)
  log = MetricsLog(tmp_path)
  course = Course(stage, built.run, lambda state: state.params, where, log)
  state = TrainState(jnp.int32(4), params, (), {}, init_guard(), origin)
  state = course.after(state, 4, {})

  best = weight_extrapolation.extrapolate(params, origin, 2.0)
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
  jax.tree.map(close, state.params, best)
  jax.tree.map(close, scored[1], jax.device_get(best))
  moved = jax.tree.map(lambda a, b: bool((a != b).any()), params, state.params)
  assert moved['layers']['mlp']['up'] and moved['layers']['attention']['q']
  assert not moved['embed'] and not moved['norm']['scale']
  jax.tree.map(lambda x: x.delete(), state.params)
  jax.tree.map(close, state.origin, best)  # a copy
  [row] = log.rows('distil')
  assert (row['step'], row['kind'], row['further']) == (4, 'foresight', 2.0)
  assert course.after(state, 5, {}) is state
