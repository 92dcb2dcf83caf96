"""Who writes, by hand; what cannot be is refused with the reason."""

import jax
import pytest

from jopd import losses
from jopd.run import config as configs
from jopd.run.response_sources import Rows, draw, make_rows, members, rows_on

TEACHERS = dict(teacher='teacher', hinted='teacher')


def of(source, **settings):
  return members(
    configs.stage(response_source=source, teachers=TEACHERS, **settings)
  )


def test_three_ways_to_name_the_writers():
  assert of('teacher', group_size=2) == {('teacher', 'teacher'): 1.0}
  group = ('student', 'teacher', 'student', 'dataset')
  assert of(group) == of(group, group_size=4) == {group: 1.0}
  shares = of(dict(student=0.25, teacher=0.75), group_size=2)
  assert shares == {('student',) * 2: 0.25, ('teacher',) * 2: 0.75}


@pytest.mark.parametrize(
  'source, settings, part',
  [
    ('techer', {}, "source is 'techer'; did you mean 'teacher'?"),
    (('student', 'judge'), {}, "source is 'judge'; choose from dataset, hint"),
    ((), {}, 'source names 0 responses'),
    (('student',) * 2, dict(group_size=3), 'leave group_size alone'),
    (('dataset', 'student', 'dataset'), {}, 'a dataset has one response'),
    (dict(student=0.5, dataset=0.5), dict(group_size=2), 'one response to a'),
    (dict(student=0.5, teacher=0.4), {}, 'shares must sum to 1, got 0.9'),
    (dict(student=1.5, teacher=-0.5), {}, "share of 'teacher' must be above 0"),
  ],
)
def test_groups_that_cannot_be_are_refused(source, settings, part):
  with pytest.raises(ValueError, match='source') as error:
    of(source, **settings)
  assert part in str(error.value) or part in str(error.value).lower()


# Kills origins in the order of a dictionary, where the student is not 0.
def test_places_are_of_the_student_first_and_the_dataset_last():
  rows = Rows((('dataset', 'hinted', 'student'), ('teacher',) * 3))
  assert rows.sources == ('student', 'hinted', 'teacher', 'dataset')
  assert rows.origins == [[3, 1, 0], [2, 2, 2]]
  assert rows.group_size == rows.most('teacher') == 3
  assert rows.most('student') == 1


def test_names_that_are_no_sources_are_domains():
  terms = dict(
    a=dict(on='student'), b=dict(on=('sums', 'student')), c=dict(on='rules')
  )
  rows = make_rows([('student', 'dataset')], terms)
  assert rows.domains == ('rules', 'sums')
  assert rows_on({}, rows) is None
  row = losses.Row(
    origin=jax.numpy.array([0, 1, 0, 0]), domain=jax.numpy.array([0, 1, 1, -1])
  )
  found = {
    name: rows_on(spec, rows)(row).tolist() for name, spec in terms.items()
  }
  assert found == dict(
    a=[True, False, True, True],
    b=[False, False, True, False],
    c=[True, False, False, False],
  )
  with pytest.raises(ValueError, match="on names 'sum'; did you mean 'sums'"):
    rows_on(dict(on='sum'), rows)


# A share is one of steps, and a step's key decides. Kills a draw that all steps
# share, and shares that are swapped.
def test_shares_are_drawn_by_the_key():
  choose = draw({('student',): 0.75, ('dataset',): 0.25})
  keys = jax.random.split(jax.random.key(0), 400)
  drawn = [choose(key) for key in keys]
  assert drawn == [choose(key) for key in keys]
  # Four standard deviations of 400 draws.
  assert abs(drawn.count(('student',)) / 400 - 0.75) < 0.09
  assert draw({('teacher',) * 2: 1.0})(keys[0]) == ('teacher',) * 2
