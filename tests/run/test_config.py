"""Defaults, suggestions, and what becomes of an error inside a setting."""

import jax.numpy as jnp
from ml_collections import ConfigDict
import pytest

from jopd import losses
from jopd.run import config as configs


def test_suggestions_name_the_nearest_or_all():
  # Kills: 'choose from' with nothing behind it.
  assert configs.did_you_mean('step', ['steps']) == "; did you mean 'steps'?"
  assert configs.did_you_mean('x', ['b', 'a']) == '; choose from a, b'
  assert configs.did_you_mean('x', []) == ''


def test_a_stage_keeps_the_defaults_that_are_not_given():
  # Kills: settings shared between two stages, and an optimizer that keeps
  # those of another.
  one, two = configs.stage(steps=3, optimizer=dict(name='sgd')), configs.stage()
  assert one.steps == 3 and dict(one.optimizer) == {'name': 'sgd'}
  assert two.steps == 100 and two.optimizer.name == 'adamw'
  assert isinstance(one.optimizer, ConfigDict) and one.batch_size == 64


def test_a_config_takes_functions_where_names_stand():
  # Kills: types of ml_collections that refuse a function for a name.
  config = configs.base()
  config.reward = len
  config.distil = configs.stage(filter=min)
  config.distil.filter = max
  assert config.reward is len and config.distil.filter is max


def test_a_wrong_setting_gets_the_name_of_its_place():
  # Kills: a ValueError of the library that is taken for a bug.
  with (
    pytest.raises(configs.ConfigError, match=r'^here: there: fraction must be'),
    configs.error_context('here'),
    configs.error_context('there'),
  ):
    stats = losses.TokenStats(
      student_entropy=jnp.ones((1, 1)), mask=jnp.ones((1, 1), bool)
    )
    losses.top_fraction(stats, of='student_entropy', fraction=0.0)


@pytest.mark.parametrize('kind', [ValueError, TypeError, KeyError])
def test_an_error_that_is_not_of_jopd_keeps_its_type(kind):
  # Kills: a bug in a user's function that is reported as a wrong setting.
  with pytest.raises(kind) as error, configs.error_context('loss.match'):
    raise kind('broken')
  assert type(error.value) is kind
  assert error.value.__notes__ == ['jopd: in loss.match']
