"""The report draws charts with data, escapes texts, and uses no network."""

import base64
import html.parser
import json
import math
import re

import numpy as np
import pytest

from jopd.report import charts, panels, runs
from jopd.report.report import report
from jopd.train.errors import WrongInputError

ALL = {chart.name for chart in charts.CHARTS}


def train_row(stage, step, steps, **values):
  left = 1 - step / steps
  row = dict(stage=stage, step=step, kind='train', loss=left, grad_norm=1.0)
  row |= dict(response_length=20 + step, student_entropy=left)
  return row | {'completions/clipped_ratio': 0.1} | values


def write_run(folder, *, steps=60, after=0.5, rows=()):
  """A run of two stages: sft without a teacher, then opd with one."""
  found = []

  def evaluated(stage, step, model, greedy):
    row = dict(stage=stage, step=step, kind='eval', model=model)
    row |= dict(greedy_accuracy=greedy, avg_at_4=greedy - 0.1)
    row |= dict(avg_at_4_low=greedy - 0.15, avg_at_4_high=greedy - 0.05)
    found.append(row | {f'pass_at_{k}': greedy + k / 50 for k in (1, 2, 4)})

  evaluated('sft', 0, 'student', 0.1)
  found.extend(train_row('sft', step, 10) for step in range(1, 11))
  evaluated('sft', 10, 'student', 0.3)
  evaluated('opd', 0, 'student', 0.3)
  evaluated('opd', 0, 'big teacher', 0.8)
  for step in range(1, steps + 1):
    extra = dict(reverse_kl=1 / step, overlap=0.7, target_mass=0.9)
    extra |= dict(target_entropy=0.4, reward=0.5)
    found.append(train_row('opd', step, steps, **extra))
  evaluated('opd', steps, 'student', after)
  found.extend(rows)
  folder.mkdir(parents=True)
  lines = [json.dumps(row) + '\n' for row in found]
  (folder / 'metrics.jsonl').write_text(''.join(lines))
  seconds = {'seconds/rollout': 3.0, 'seconds/learner': 2.0}
  time = dict(stage='opd', step=1, kind='time') | seconds
  (folder / 'timings.jsonl').write_text(json.dumps(time) + '\n')
  summary = dict(stages=dict(opd=dict(teacher=None, after=1 / 3)))
  summary['versions'] = {'jax': '1.2.3'}
  (folder / 'summary.json').write_text(json.dumps(summary))
  (folder / 'config.json').write_text(json.dumps(dict(seed=17)))
  return folder


class Page(html.parser.HTMLParser):
  """Tags with their attributes, and the text a reader sees."""

  def __init__(self, path):
    super().__init__()
    self.tags, self.seen = [], []
    self.feed(path.read_text(encoding='utf-8'))
    self.text = ' '.join(' '.join(self.seen).split())

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_data(self, data):
    self.seen.append(data)


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
  """One run with everything in it, drawn once for the tests that only look."""
  folder = write_run(tmp_path_factory.mktemp('runs') / 'whole')
  return folder, report([folder])


def png_size(data):
  assert data[:8] == b'\x89PNG\r\n\x1a\n' and data[-8:-4] == b'IEND'
  return int.from_bytes(data[16:20], 'big'), int.from_bytes(data[20:24], 'big')


def test_every_chart_is_a_picture_for_light_and_dark(drawn):
  # Kills: a chart that is listed and never drawn, and an empty file.
  folder, page = drawn
  assert page == folder / 'report.html'
  files = {path.name: path for path in (folder / 'report').iterdir()}
  assert set(files) == {
    f'{name}{suffix}.png' for name in ALL for suffix in ('', '-dark')
  }
  for path in files.values():
    width, height = png_size(path.read_bytes())
    assert width > 800 and height > 150


def test_the_page_contains_its_pictures_and_uses_no_network(drawn):
  # Kills: <img src="accuracy.png">, which breaks when the page is mailed, and
  # a style sheet or script from elsewhere.
  _, path = drawn
  page = Page(path)
  pictures = [a for tag, a in page.tags if tag in ('img', 'source')]
  held = set()
  for attributes in pictures:
    source = attributes.get('src') or attributes['srcset']
    head, _, data = source.partition(',')
    assert head == 'data:image/png;base64'
    held.add(base64.b64decode(data, validate=True))
  files = (path.parent / 'report').iterdir()
  assert held == {file.read_bytes() for file in files}
  assert not {'script', 'link', 'iframe'} & {tag for tag, _ in page.tags}
  text = re.sub('base64,[^"]*', '', path.read_text(encoding='utf-8'))
  assert not re.search(r'https?:|//|@import|url\(', text)


def test_the_page_has_the_outcome_the_summary_and_the_settings(drawn):
  # Kills: a gap recovered against the student before sft: (.5-.1)/(.8-.1).
  text = Page(drawn[1]).text
  assert 'whole opd greedy accuracy 0.3 0.5 0.8 (big teacher) 40%' in text
  assert 'stages.opd.after 0.3333' in text
  assert '"seed": 17' in text and '"jax": "1.2.3"' in text
  for chart in charts.CHARTS:
    assert chart.title in text
  assert 'nan' not in text.lower().replace('finance', '')


def test_same_input_gives_the_same_bytes(drawn, tmp_path):
  # Kills: a date in the page, or a version in the pictures' metadata.
  folder, path = drawn
  again = report([folder], out=tmp_path / 'out')
  assert again == tmp_path / 'out' / 'report.html'
  assert again.read_bytes() == path.read_bytes()


def test_what_comes_from_files_is_escaped(tmp_path):
  # Kills: a stage, model or setting called <script> that runs in the reader's
  # browser.
  bad = '<script>alert(1)</script>&amp;'
  rows = [
    dict(stage=bad, step=s, kind='eval', model=m, greedy_accuracy=a)
    for s, m, a in ((0, bad, 0.1), (0, f'$\\{bad}$', 0.5), (1, bad, 0.2))
  ]
  folder = tmp_path / 'run <i>'
  folder.mkdir()
  text = ''.join(json.dumps(row) + '\n' for row in rows)
  (folder / 'metrics.jsonl').write_text(text)
  for name in ('summary', 'config'):
    (folder / f'{name}.json').write_text(
      json.dumps({bad: [bad], 'versions': bad})
    )
  page = Page(report([folder]))
  assert not {'script', 'i'} & {tag for tag, _ in page.tags}
  assert page.text.count(bad) >= 5 and 'run <i>' in page.text


@pytest.mark.parametrize(
  'row, names',
  [
    (dict(kind='train', reverse_kl=0.5), {'reverse_kl'}),
    (dict(kind='train', loss='nan', reverse_kl=None), set()),
    ({'kind': 'train', 'completions/clipped_ratio': 0.0}, {'length'}),
    (dict(kind='eval', avg_at_8=0.5), {'accuracy'}),
    (dict(kind='eval', pass_at_1=0.5), set()),
    (dict(kind='new kind', loss=1.0), set()),
    ({'kind': 'train', 'seconds/other phase': 1.0}, {'time'}),
  ],
)
def test_a_chart_is_drawn_only_where_its_data_is(tmp_path, row, names):
  # Kills: empty axes, and a KeyError where a metric is absent.
  row = dict(stage='opd', step=1) | row
  (tmp_path / 'metrics.jsonl').write_text(json.dumps(row) + '\n')
  report([tmp_path])
  found = {path.stem for path in (tmp_path / 'report').iterdir()}
  assert {name.removesuffix('-dark') for name in found} == names


def test_non_finite_values_leave_a_hole_not_a_crash(tmp_path):
  # Kills: axes stretched to infinity, and a mean that one NaN makes NaN.
  rows = [
    train_row('opd', step, 60, loss=bad, reverse_kl=bad)
    for step, bad in ((20, 'nan'), (21, 'inf'), (22, '-inf'), (23, math.nan))
  ]
  folder = write_run(tmp_path / 'run', rows=rows)
  assert report([folder]).exists()
  (run,) = runs.read_runs([folder])
  (curve,) = runs.curves(run, panels.field('reverse_kl').value)
  assert np.flatnonzero(np.isnan(curve.values)).tolist() == [19, 20, 21, 22]
  smooth = panels._running_mean(curve.values, 8)
  assert np.isfinite(smooth).all()
  # By hand: 1/step at steps 16 to 19, which are 4 of the window's 8.
  expected = np.mean([1 / 16, 1 / 17, 1 / 18, 1 / 19])
  assert smooth[19] == pytest.approx(expected)


def test_a_line_still_being_written_is_ignored_and_a_broken_one_named(tmp_path):
  # Kills: a report that fails while training goes on, and one that skips
  # whatever it cannot read.
  path = write_run(tmp_path / 'run') / 'metrics.jsonl'
  whole = path.read_text()
  path.write_text(whole + '{"stage": "opd", "st')
  (run,) = runs.read_runs([path.parent])
  assert len(run.rows) == whole.count('\n') + 1  # and the one of timings.jsonl
  path.write_text('{"stage": "opd", "st\n' + whole)
  with pytest.raises(WrongInputError, match=r'jsonl:1: expected a JSON'):
    report([path.parent])


def test_nothing_to_draw_is_one_clear_line(tmp_path):
  # Kills: an empty page, and a traceback from deep inside.
  with pytest.raises(WrongInputError, match=r'metrics.jsonl: not found'):
    report([tmp_path])
  (tmp_path / 'metrics.jsonl').write_text('{"torn": ')
  with pytest.raises(WrongInputError, match=r'has no complete row'):
    report([tmp_path])
  with pytest.raises(WrongInputError, match=r'at least one run'):
    report([])
  (tmp_path / 'metrics.jsonl').write_text(
    '{"stage": "a", "step": 1, "kind": "train"}\n'
  )
  (tmp_path / 'summary.json').write_text('[1]')
  with pytest.raises(WrongInputError, match=r'summary.json: expected a JSON'):
    report([tmp_path])


def test_several_runs_are_compared_and_keep_their_own_reports(tmp_path):
  # Kills: a comparison written over the first run's report, and two runs of
  # one name that cannot be told apart.
  first = write_run(tmp_path / 'a' / 'run', after=0.5)
  second = write_run(tmp_path / 'b' / 'run', after=0.7, steps=30)
  page = report([first, second])
  assert page == first / 'comparison.html'
  assert not (first / 'report.html').exists()
  pictures = {path.stem for path in (first / 'comparison').iterdir()}
  assert pictures == ALL | {f'{name}-dark' for name in ALL}
  text = Page(page).text
  assert 'a/run opd greedy accuracy 0.3 0.5 0.8 (big teacher) 40%' in text
  assert 'b/run opd greedy accuracy 0.3 0.7 0.8 (big teacher) 80%' in text


def test_all_runs_are_drawn_on_one_axis_of_steps(tmp_path):
  # Kills: stages of a short run that begin before those of a long one.
  first = write_run(tmp_path / 'one', steps=30)
  second = write_run(tmp_path / 'two', steps=60)
  read = runs.read_runs([first, second])
  assert runs.timeline(read, {'sft', 'opd'}) == {
    'sft': (0, 10),
    'opd': (10, 70),
  }
  assert runs.timeline(read, {'opd'}) == {'opd': (0, 60)}
  figure = charts.draw_accuracy(read, panels.LIGHT)
  assert [axis.get_ylabel() for axis in figure.axes] == [
    *('greedy accuracy', 'avg@4')
  ]
  solid = [
    line.get_xdata().tolist()
    for line in figure.axes[0].lines
    if line.get_marker() == 'o'
  ]
  assert solid == [[0, 10], [10, 40], [0, 10], [10, 70]]
  levels = {text.get_text() for text in figure.axes[0].texts}
  assert {'big teacher 0.8', 'student before 0.3', 'sft', 'opd'} <= levels


def test_the_model_that_learns_may_be_called_teacher(tmp_path):
  # Kills: taking "student" for the learner in a stage that trains the teacher.
  rows = [
    dict(stage='rl', step=s, kind='eval', model=m, greedy_accuracy=a)
    for s, m, a in ((0, 'coach', 0.9), (0, 'teacher', 0.5), (4, 'teacher', 0.8))
  ]
  folder = tmp_path / 'run'
  folder.mkdir()
  text = ''.join(json.dumps(row) + '\n' for row in rows)
  (folder / 'metrics.jsonl').write_text(text)
  (gap,) = runs.gaps(runs.read_runs([folder])[0])
  assert (gap.teacher, gap.before, gap.after) == ('coach', 0.5, 0.8)
  assert gap.recovered == pytest.approx(0.75)


def test_without_a_gap_none_is_recovered():
  # Kills: -300 % for a student that was better than its teacher to start with.
  gap = runs.Gap('run', 'opd', 'greedy_accuracy', 'teacher', 0.5, 0.8, 0.4)
  assert math.isnan(gap.recovered)


def test_time_is_summed_over_steps_by_phase(tmp_path):
  # Kills: only the last step's seconds, or one bar for all stages.
  row = dict(stage='sft', step=1, kind='time')
  rows = [row | {'seconds/save': 2.0}, row | {'seconds/save': 1.5}]
  folder = write_run(tmp_path / 'run', rows=rows)
  assert runs.seconds(runs.read_runs([folder])[0]) == {
    'sft': {'save': 3.5},
    'opd': {'rollout': 3.0, 'learner': 2.0},
  }
