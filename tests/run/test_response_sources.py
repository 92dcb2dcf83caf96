"""Which sources generate, how often, and which rows a term learns from."""

import jax
import jax.numpy as jnp
import pytest

from jopd import losses
from jopd.run import config as configs
from jopd.run.config import ConfigError
from jopd.run.sources import Sources, make_sources


def sources_of(response_source, **settings):
  teachers = dict(teacher='t', hinted='t')
  return make_sources(
    configs.stage(
      response_source=response_source, teachers=teachers, **settings
    )
  )


@pytest.mark.parametrize(
  'source, size, groups',
  [
    ('student', 3, {('student',) * 3: 1.0}),
    (('student', 'teacher'), 1, {('student', 'teacher'): 1.0}),
    (
      dict(student=0.75, dataset=0.25),
      1,
      {('student',): 0.75, ('dataset',): 0.25},
    ),
  ],
)
def test_a_source_is_a_name_a_tuple_or_shares(source, size, groups):
  sources = sources_of(source, group_size=size)
  assert sources.groups == groups
  assert sources.group_size == len(next(iter(groups)))


def test_the_student_is_the_first_source_and_a_dataset_the_last():
  # Kills: an order of the config, which changes what a row's source means.
  sources = sources_of(('dataset', 'hinted', 'student', 'hinted'))
  assert sources.names == ('student', 'hinted', 'dataset')
  assert sources.count('hinted') == 2


@pytest.mark.parametrize(
  'source, size, part',
  [
    ('studnt', 1, "response_source is 'studnt'; did you mean 'student'?"),
    (('student', 'teacher'), 3, 'leave group_size at 1'),
    (('dataset', 'dataset'), 1, 'a dataset has one response to a prompt'),
    ('dataset', 2, 'a dataset has one response to a prompt'),
    (dict(student=0.5, dataset=0.4), 1, 'must sum to 1, got 0.9'),
    (dict(student=1.5, dataset=-0.5), 1, 'must be above 0, got -0.5'),
    ((), 1, 'names 0 responses'),
  ],
)
def test_groups_that_cannot_be_are_refused(source, size, part):
  with pytest.raises(ConfigError) as error:
    sources_of(source, group_size=size)
  assert part in str(error.value)


def test_shares_are_those_of_the_steps():
  # 400 draws at 0.75: the deviation is 8.7. Kills: shares that are swapped, and
  # one draw for all steps.
  sources = sources_of(dict(student=0.75, dataset=0.25))
  keys = jax.random.split(jax.random.key(0), 400)
  drawn = [sources.draw(key)[0] for key in keys]
  assert abs(drawn.count('student') - 300) < 40


def test_a_term_learns_from_rows_of_its_sources_and_domains():
  # Kills: an or where both are named, and a domain that is taken for a source.
  loss = dict(a=dict(rows=('teacher', 'sums')), b=dict(rows='student'))
  sources = sources_of(('student', 'teacher'), loss=loss)
  assert sources.domains == ('sums',)
  row = losses.Row(source=jnp.array([0, 1, 1]), domain=jnp.array([0, 0, -1]))
  assert sources.rows(('teacher', 'sums'))(row).tolist() == [False, True, False]
  assert sources.rows('student')(row).tolist() == [True, False, False]
  assert sources.rows(()) is None
  with pytest.raises(ConfigError, match="did you mean 'teacher'"):
    Sources({('student', 'teacher'): 1.0}).rows('teachr')
