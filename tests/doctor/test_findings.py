"""Limits become statuses, and every text can be filled in."""

import math

import pytest

from jopd.doctor.findings import CHECKS, COLD, WARM, Finding, judge, worst

NAMES = dict.fromkeys(
  (
    *('first', 'model', 'student', 'teacher', 'role', 'term', 'more'),
    *('longer', 'shorter', 'longest', 'earlier'),
  ),
  'x',
)


@pytest.mark.parametrize(
  'check, number, status',
  [
    ('truncation', 0.2, 'ok'),
    ('truncation', 0.21, 'warn'),
    ('truncation', 0.81, 'refuse'),
    ('agreement', 0.6, 'ok'),
    ('agreement', 0.5, 'warn'),
    ('agreement', 0.3, 'refuse'),
    ('overlap', 0.0, 'warn'),  # nothing is bad enough to refuse
    ('repeatability', math.nan, 'refuse'),
    ('entropy', math.nan, 'warn'),
  ],
)
def test_limits(check, number, status):
  # Kills: limits that are exclusive, sides exchanged, NaN that passes.
  assert judge(check, number, 'what', stage='s', **NAMES).status == status


@pytest.mark.parametrize('check', CHECKS)
def test_what_is_wrong_is_explained_and_what_is_right_is_not(check):
  rule = CHECKS[check]
  assert rule.bound in ('at most', 'at least')
  sign = 1 if rule.bound == 'at most' else -1
  bad = judge(check, rule.warn + sign, 'what', stage='s', **NAMES)
  assert bad.status in ('warn', 'refuse')
  assert bad.source and bad.mechanism and bad.fix
  assert not {'{', '}'} & set(bad.mechanism + bad.fix)
  assert bad.threshold.startswith(rule.bound)
  # Refusing begins beyond warning.
  assert rule.refuse is None or sign * (rule.refuse - rule.warn) >= 0
  good = judge(check, rule.warn, 'what', stage='s')
  assert good[6:] == ('', '', '') and good.status == 'ok'


def test_a_finding_that_another_explains():
  found = judge(
    *('agreement', 0.1, 'what'),
    **dict(stage='distil', mechanism=COLD, fix=WARM, teacher='t'),
  )
  assert found.mechanism == COLD and "before 'distil'" in found.fix


def test_the_worst_decides():
  of = lambda *statuses: [Finding('', '', s, 0.0, '', '') for s in statuses]
  assert worst(of('ok', 'refuse', 'warn')) == 'refuse'
  assert worst(of('ok', 'warn')) == 'warn'
  assert worst(of('ok')) == worst([]) == 'ok'
