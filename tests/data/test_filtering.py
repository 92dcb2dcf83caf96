"""Bad rows: left out, counted, written down; too many stop the run."""

import json
import logging

import pytest

from jopd.data import sources
from jopd.data.examples import Example, Lazy, Rejected, Unfit
from jopd.data.filtering import RejectedRows, RowFilter


def example(name, **fields):
  return Example(name, [{'role': 'user', 'content': f'say {name}'}], **fields)


def lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def ids(examples):
  return [example.id for example in examples]


def test_bad_rows_are_left_out_and_written_with_source_number_and_reason(
  tmp_path, caplog
):
  # Kills: numbers among the good rows or those that are not blank; a second
  # example of one name; a row of a megabyte that is copied whole.
  data = tmp_path / 'a.jsonl'
  rows = ['{"prompt": "p", "id": 1}', '', '{"prompt": "q", "id": 1}']
  rows += [
    '{"prompt": "r"}',
    '{"prompt": "' + 'x' * 10**6 + '"]',
    '{"prompt": "s"}',
  ]
  data.write_text('\n'.join(rows))

  def check(example):
    if example.messages[0]['content'] == 'r':
      raise Unfit('of no use')

  rejected = RejectedRows(0.5, tmp_path / 'run' / 'quarantine.jsonl')
  row_filter = RowFilter(rejected, dict(name='jsonl', path=str(data)))
  caplog.set_level(logging.WARNING)
  kept = row_filter.select(sources.jsonl(data), check)
  assert ids(kept) == ['1', 'a.jsonl:6'] and ids(kept[1:]) == ['a.jsonl:6']
  # Row 6 passes the check, and fails later.
  row_filter.reject(1, ValueError('spells the stop token'))
  with pytest.raises(ValueError, match='3 of 5 rows are bad'):
    row_filter.check_fraction()
  rejected.write()
  assert [
    (row['source'], row['row'], row['bad'], row['reason'][:40])
    for row in lines(rejected.path)
  ] == [
    (str(data), 3, True, 'example 1: its id was seen before'),
    (str(data), 4, False, 'example a.jsonl:4: of no use'),
    (str(data), 5, True, "not JSON: Expecting ',' delimiter, colum"),
    (str(data), 6, True, 'example a.jsonl:6: spells the stop token'),
  ]
  assert len(lines(rejected.path)[2]['text']) == 200
  # What is of no use is not bad: 2 of 5, and not 3.
  assert f'{data}: 2 of 5 rows are bad (40.0%) and left out' in caplog.text


def test_reading_again_writes_the_same_file_once(tmp_path):
  # Kills: a file that grows with each stage and each resumed run, and a stale
  # one beside data that was repaired.
  rows = [example('a'), Rejected('cut', '{"pro')]
  path = tmp_path / 'quarantine.jsonl'
  for _ in range(2):
    rejected = RejectedRows(0.5, path)
    for _stage in range(2):
      RowFilter(rejected, 'here').select(rows)
    rejected.write()
    assert [row['row'] for row in lines(path)] == [2]
  rejected = RejectedRows(0.5, path)
  RowFilter(rejected, 'here').select(rows[:1])
  rejected.write()
  assert path.read_text() == ''
  # Kills: a folder that is made for nothing.
  RejectedRows(0.5, tmp_path / 'new' / 'quarantine.jsonl').write()
  assert not (tmp_path / 'new').exists()


@pytest.mark.parametrize(
  'good, bad, limit, stops',
  [(97, 3, 0.03, False), (97, 3, 0.02, True), (0, 2, 1.0, True)],
)
def test_too_many_bad_rows_stop_the_run_with_the_first_of_them(
  good, bad, limit, stops
):
  # Kills: a limit that is reached one row early; a share of 1.0 that lets a
  # source of only bad rows through.
  rows = [example(str(i)) for i in range(good)]
  rows[40:40] = [Rejected(f'why {i}') for i in range(bad)]
  row_filter = RowFilter(RejectedRows(limit), 'here')
  if not stops:
    assert len(row_filter.select(rows)) == good
    return
  first = min(good, 40) + 1
  with pytest.raises(
    ValueError, match=rf'{bad} of {good + bad} rows are bad .*row {first}: why'
  ):
    row_filter.select(rows)


def test_lazy_rows_stay_lazy_and_are_read_once():
  # Kills: a source that is held whole, and rows that are read over and over.
  made = []

  def make(index):
    made.append(index)
    return Rejected('bad') if index % 10 == 3 else example(str(index))

  rows = Lazy(1000, make)
  kept = RowFilter(RejectedRows(0.2), 'here').select(rows)
  # A few more are read by the checks of types that tests run with.
  assert set(made) == set(range(1000)) and len(made) < 1100
  assert len(kept) == 900 and kept[3].id == '4' and kept[-1].id == '999'
  made.clear()
  # Kills: an evaluation of 5 prompts that reads a million rows, or gets 4.
  few = RowFilter(RejectedRows(0.3), 'here').select(rows, count=5)
  assert ids(few) == ['0', '1', '2', '4', '5'] and len(made) < 100
  whole = Lazy(5, lambda index: example(str(index)))
  assert RowFilter(RejectedRows(0.2), 'here').select(whole) is whole
