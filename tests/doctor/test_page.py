"""The page is narrow, ordered and complete."""

import json
import math

from jopd.doctor.findings import CHECKS, COLD, WARM, judge
from jopd.doctor.page import as_json, page

NAMES = dict(first='a', model='b', teacher='t', longer=64, stage='distil')


def test_a_healthy_page():
  text = page([judge('agreement', 0.921, 'share of tokens', stage='distil')])
  assert text.splitlines() == [
    'distil',
    '  ok      agreement             0.921 >= 0.6    share of tokens',
    '',
    'healthy: nothing found',
  ]


def test_what_is_wrong_comes_with_why_fix_and_source():
  findings = [
    judge('tokenizer', 84, 'ids', **NAMES | dict(stage='')),
    judge('truncation', 0.5, 'responses ' * 12, **NAMES),
    judge('student', math.nan, 'accuracy', **NAMES, student='s'),
  ]
  text = page(findings)
  lines = text.splitlines()
  assert max(map(len, lines)) <= 100
  assert lines[0] == 'all models' and 'distil' in lines
  assert lines[1].split()[:3] == ['REFUSE', 'tokenizer', '84']
  words = ' '.join(text.split())
  for finding in findings:
    for told in (finding.mechanism, finding.fix, finding.source):
      assert ' '.join(told.split()) in words
  assert lines[-1] == 'will not work: 2 refused, warnings: 1'


def test_numbers_line_up():
  findings = [
    judge(check, 1 / 3, 'x', stage='s', status='ok') for check in CHECKS
  ]
  lines = page(findings).splitlines()[1:-2]
  assert {line.rindex('x') for line in lines} == {lines[0].rindex('x')}
  assert all(' 0.333 ' in line for line in lines)


def test_one_cause_is_explained_once():
  cause = dict(mechanism=COLD, fix=WARM)
  findings = [
    judge(check, 0.0, 'x', status='warn', **NAMES, **cause)
    for check in ('student', 'agreement', 'overlap')
  ]
  text = page(findings)
  assert text.count('cold student') == text.count('SFT first') == 1
  assert text.count('why     as for student') == 2


def test_nothing_to_say():
  assert page([]).strip() == 'healthy: nothing found'


def test_json_for_machines():
  # Kills: NaN, which is not JSON.
  findings = [judge('student', math.nan, 'accuracy', **NAMES, student='s')]
  document = json.loads(as_json(findings), parse_constant=lambda _: 1 / 0)
  assert document['status'] == 'refuse'
  (row,) = document['findings']
  assert row['number'] is None and row['check'] == 'student'
  assert {'mechanism', 'fix', 'source', 'threshold'} <= row.keys()
