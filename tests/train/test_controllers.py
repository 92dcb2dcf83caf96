"""The rules of scalars that follow what is measured."""

import doctest
from functools import partial

import pytest

from jopd.train import controllers


def test_examples_print_what_they_say():
  assert doctest.testmod(controllers).failed == 0


# Kills: a ladder that climbs at each step, that climbs beyond its end, or that
# falls when the gate is shut.
def test_a_ladder_climbs_only_when_enough_was_measured():
  state, values = {}, []
  rows = [{}, {}, {'h': 0.5}, {'h': 0.4}, {}, {'h': 0.6}, {'h': 0.9}]
  for row in rows:
    state = controllers.staged_curriculum(
      state, row, rungs=(4, 8, 16), least=0.5, of='h'
    )
    values.append(state['value'])
  assert values == [4, 4, 8, 8, 8, 16, 16]


# Kills: a controller of the wrong sign, and one without a bound.
def test_a_factor_grows_while_the_measure_is_above_its_aim():
  move = lambda kl: controllers.adaptive_kl(
    {'value': 1.0}, kl, start=1.0, of='kl', aim=0.2, gain=0.5, most=0.4
  )['value']
  assert move({'kl': 0.22}) == pytest.approx(1.05)
  assert move({'kl': 0.18}) == pytest.approx(0.95)
  assert move({'kl': 9.0}) == pytest.approx(1.2)
  assert move({'kl': 0.0}) == pytest.approx(0.8)
  assert move({}) == 1.0


def test_what_cannot_be_meant_is_refused():
  with pytest.raises(ValueError, match='rungs is empty'):
    controllers.staged_curriculum({}, {}, rungs=(), least=0.0)
  with pytest.raises(ValueError, match='aim must be above 0, got 0'):
    controllers.adaptive_kl({}, {}, start=1.0, of='kl', aim=0.0)


# Kills: a scalar that a broken step moves, or makes NaN for ever.
def test_what_is_not_finite_paces_nothing():
  rule = partial(controllers.adaptive_kl, start=0.5, of='kl', aim=0.1)
  pace = controllers.Pace({'coef': rule})
  for measured in (float('nan'), float('inf')):
    pace.advance({'kl': measured, 'loss': measured})
  assert pace.values() == {'coef': 0.5}
  pace.advance({'kl': 0.3, 'loss': float('nan')})
  assert pace.values() == {'coef': 0.51}
