"""A run of a few steps, made the way the console command makes it."""

import json

import pytest
import tiny

from jopd.rewards import Reward
from jopd.run import build
from jopd.train import pipeline


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


@pytest.fixture(scope='session')
def train():
  """Runs what was built in a folder: the summary, and the bytes of the log."""

  def run(built, workdir):
    summary = pipeline.train(built.run, built.stages, built.params, workdir)
    return summary, (workdir / 'metrics.jsonl').read_bytes()

  return run


@pytest.fixture(scope='session')
def interrupt():
  """The run, ended by an exception when the metrics of a step are written."""

  def stop_at(built, stage_name, step):
    def rate(update):
      if update == step:
        raise KeyboardInterrupt
      return stage.update.learning_rate(update)

    stages = list(built.stages)
    [index] = [i for i, x in enumerate(stages) if x.name == stage_name]
    stage = stages[index]
    update = stage.update._replace(learning_rate=rate)
    stages[index] = stage._replace(update=update)
    return built._replace(stages=tuple(stages))

  return stop_at


@pytest.fixture(scope='session')
def rows_of():
  """The rows of a kind in the bytes of a log."""

  def select(log, kind='train'):
    rows = map(json.loads, log.splitlines())
    return [row for row in rows if row['kind'] == kind]

  return select


@pytest.fixture(scope='session')
def rewarded():
  """The run with another reward: by default the share of small letters, which
  a random model gets a part of."""

  def letters(response, example):
    text = response.text
    return sum('a' <= c <= 'z' for c in text) / max(1, len(text))

  def replace(built, reward=letters):
    grade = lambda *args: Reward(float(reward(*args)))
    return built._replace(run=built.run._replace(reward=grade))

  return replace
