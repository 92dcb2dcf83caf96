"""A run of a few steps, made the way the console command makes it."""

import pytest
import tiny

from jopd.run import build


@pytest.fixture(scope='session')
def make_tiny():
  """Builds the two stages of tests/tiny.py, longer and with every part used."""

  def make(**overrides):
    config = tiny.get_config()
    config.checkpoint.every = 2
    config.warm.steps = 2
    config.distil.steps = 5
    config.distil.group_size = 2
    config.distil.gradient_accumulation_steps = 2
    config.distil.loss.reward = dict(
      objective='policy_gradient', surrogate='reinforce', coef=0.1
    )
    for name, value in overrides.items():
      section, _, key = name.rpartition('.')
      where = config[section] if section else config
      with where.ignore_type():  # a source is a name, or several
        where[key] = value
    return build.build(config)

  return make
