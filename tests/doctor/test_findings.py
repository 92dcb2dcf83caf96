"""Limits decide statuses, every text can be filled in, the page is complete."""

import json
import math

import pytest

from jopd.doctor.findings import (
  CHECKS,
  COLD,
  WARM_UP,
  Finding,
  as_json,
  judge,
  page,
  worst,
)

NAMES = dict.fromkeys(
  (
    *('first', 'model', 'student', 'teacher', 'role', 'term', 'more'),
    *('longer', 'shorter', 'longest', 'earlier', 'reason'),
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
    'agreement',
    0.1,
    'what',
    stage='distil',
    mechanism=COLD,
    fix=WARM_UP,
    teacher='t',
  )
  assert found.mechanism == COLD and "before 'distil'" in found.fix


def test_the_worst_decides():
  of = lambda *statuses: [Finding('', '', s, 0.0, '', '') for s in statuses]
  assert worst(of('ok', 'refuse', 'warn')) == 'refuse'
  assert worst(of('ok', 'warn')) == 'warn'
  assert worst(of('ok')) == worst([]) == 'ok'


# The page

PAGE_NAMES = dict(first='a', model='b', teacher='t', longer=64, stage='distil')


def test_a_healthy_page():
  text = page([judge('agreement', 0.921, 'share of tokens', stage='distil')])
  assert text.splitlines() == [
    'distil',
    '  ok      agreement             0.921 >= 0.6    share of tokens',
    '',
    'healthy: no problem found',
  ]


def test_what_is_wrong_comes_with_why_fix_and_source():
  findings = [
    judge('tokenizer', 84, 'ids', **PAGE_NAMES | dict(stage='')),
    judge('truncation', 0.5, 'responses ' * 12, **PAGE_NAMES),
    judge('student', math.nan, 'accuracy', **PAGE_NAMES, student='s'),
  ]
  text = page(findings)
  lines = text.splitlines()
  assert max(map(len, lines)) <= 100
  assert lines[0] == 'all models' and 'distil' in lines
  assert lines[1].split()[:3] == ['REFUSE', 'tokenizer', '84']
  words = ' '.join(text.split())
  for finding in findings:
    for part in (finding.mechanism, finding.fix, finding.source):
      assert ' '.join(part.split()) in words
  assert lines[-1] == 'will not work: 2 refused, warnings: 1'


def test_numbers_line_up():
  findings = [
    judge(check, 1 / 3, 'x', stage='s', status='ok') for check in CHECKS
  ]
  lines = page(findings).splitlines()[1:-2]
  assert {line.rindex('x') for line in lines} == {lines[0].rindex('x')}
  assert all(' 0.333 ' in line for line in lines)


def test_one_cause_is_explained_once():
  cause = dict(mechanism=COLD, fix=WARM_UP)
  findings = [
    judge(check, 0.0, 'x', status='warn', **PAGE_NAMES, **cause)
    for check in ('student', 'agreement', 'overlap')
  ]
  text = page(findings)
  assert text.count('cold student') == text.count('SFT first') == 1
  assert text.count('why     as for student') == 2


def test_a_page_without_findings():
  assert page([]).strip() == 'healthy: no problem found'


def test_json_for_machines():
  # Kills: NaN, which is not JSON.
  findings = [judge('student', math.nan, 'accuracy', **PAGE_NAMES, student='s')]
  document = json.loads(as_json(findings), parse_constant=lambda _: 1 / 0)
  assert document['status'] == 'refuse'
  (row,) = document['findings']
  assert row['number'] is None and row['check'] == 'student'
  assert {'mechanism', 'fix', 'source', 'threshold'} <= row.keys()
