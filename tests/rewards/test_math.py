"""Answers as mathematics: verdicts, hangs, threads, and what is never run."""

import functools
import json
import logging
import pathlib
import signal
import sys
import threading

import pytest

from jopd import rewards
from jopd.data.examples import Example

child = pytest.importorskip('math_verify') and sys.modules['jopd.rewards.math']
CORPUS = pathlib.Path(__file__).with_name('math_corpus.jsonl')
ROWS = [json.loads(line) for line in CORPUS.read_text().splitlines()]
THIRD = r'\frac{1}{3}'  # neither text nor an integer: the child decides


def match(text, answer, **settings):
  example = Example('a', [], answer=answer)
  return rewards.math_match(rewards.Response(text), example, **settings)


def grade(text, answer, **settings):
  function = functools.partial(rewards.math_match, **settings)
  example = Example('a', [], answer=answer)
  return rewards.grade(function, rewards.Response(text), example)


# `right` is decided by mathematics, and `miss` marks where math-verify differs:
# a miss that is mended, and a new one, both fail here.
@pytest.mark.parametrize('row', ROWS, ids=lambda row: row['why'])
def test_verdicts_of_the_corpus(row):
  # An answer that hangs costs its limit; others get all the time they need.
  limit = 0.5 if row.get('hangs') else 60.0
  found = grade(row['said'], row['answer'], timeout=limit)
  assert found.value == float(row['right'] != row.get('miss', False))
  assert found.judged != row.get('hangs', False)


def test_a_hang_is_ended_counted_and_logged_once(caplog):
  # Kills: a limit that Python must be running to keep (this is one call into
  # C), a child that stays dead, a hang that costs its limit again, and one
  # that looks like a wrong answer the second time.
  lost, said = child._CHILD.lost, r'\boxed{10^{10^{10}} + \frac12}'
  with caplog.at_level(logging.WARNING, 'jopd'):
    for _ in range(2):
      assert grade(said, '2', timeout=0.5) == rewards.Reward(0.0, judged=False)
  assert child._CHILD.lost == lost + 1
  [record] = caplog.records
  assert f'no verdict within 0.5 s on {said[7:-1]!r}' in record.getMessage()
  assert f'({lost + 1} such answers so far)' in record.getMessage()
  assert match(r'\boxed{2/6}', THIRD, timeout=60.0) == 1.0


def test_a_child_that_somebody_killed_is_started_again():
  # Kills: an exception in the middle of a run, and an answer that pays for it.
  assert match(r'\boxed{3/9}', THIRD, timeout=60.0) == 1.0
  child._CHILD._process.send_signal(signal.SIGKILL)
  child._CHILD._process.wait()
  assert match(r'\boxed{5/15}', THIRD, timeout=60.0) == 1.0


def test_an_interrupted_question_is_not_answered_later(monkeypatch):
  # Kills: the reply to the one before, after a Ctrl-C in a notebook.
  def interrupt():
    raise KeyboardInterrupt

  assert match(r'\boxed{7/21}', THIRD, timeout=60.0) == 1.0
  process = child._CHILD._process
  with monkeypatch.context() as patch:
    patch.setattr(process.stdout, 'readline', interrupt, raising=False)
    with pytest.raises(KeyboardInterrupt):
      match(r'\boxed{8/24}', THIRD, timeout=60.0)
  assert match(r'\boxed{9/28}', THIRD, timeout=60.0) == 0.0


def test_threads_get_their_own_verdicts():
  # Kills: SIGALRM in the parent, which raises off the main thread and has
  # silently scored everything 0, and replies that reach the wrong thread.
  verdicts = {}

  def compare(n):
    said = rf'\boxed{{\frac{{{n}}}{{30}}}}'
    verdicts[n] = match(said, THIRD, timeout=60.0)

  threads = [threading.Thread(target=compare, args=(n,)) for n in range(8, 13)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert verdicts == {8: 0.0, 9: 0.0, 10: 1.0, 11: 0.0, 12: 0.0}


@pytest.mark.parametrize(
  'code',
  [
    'open("{path}","w")',
    '__import__("os").system("touch {path}")',
    r'\text{{__import__("os").system("touch {path}")}}',
    r'\mathrm{{open}}("{path}","w")',
    '(lambda: open("{path}","w"))()',
  ],
)
def test_what_a_model_writes_is_not_run(code, tmp_path):
  path = tmp_path / 'run'
  said = rf'\boxed{{{code.format(path=path)}}}'
  assert match(said, THIRD, timeout=60.0) == 0.0
  assert not path.exists()


def test_what_sympy_would_evaluate_must_be_a_literal():
  # Kills: a door from text to `eval` that a new release might open. The text
  # is what sympy's own tokenizer makes of the first argument.
  from jopd.rewards import worker

  kept = worker.sympy_parser.eval_expr
  try:
    worker._make_same()
    assert worker.sympy_parser.parse_expr('0.25') == worker.sympy.Float('0.25')
    for code in ('open("a","w")', 'x.__class__', 'exit()', '[1][0]'):
      with pytest.raises(ValueError, match='not evaluated'):
        worker.sympy_parser.parse_expr(code)
  finally:
    worker.sympy_parser.eval_expr = kept


def test_the_answer_can_stand_behind_a_marker():
  # As DAPO-Math-17k asks for it; GSM8K's reference brings its own marker.
  match_answer = functools.partial(match, marker='Answer:')
  assert match_answer('so\nAnswer: $0.5$', r'\frac12') == 1.0
  assert match_answer(r'Answer: \boxed{34}', '34') == 1.0
  assert match_answer('34', '34') == 0.0
  assert match_answer('Answer: 1}{2', '12') == 0.0
  solution = '48 / 2 = 24\n#### 24'
  assert match('#### 24.0', solution, marker='####') == 1.0


def test_settings_and_references_that_cannot_be_are_refused(monkeypatch):
  # Kills: a limit of 0, which switches the timer off, and a reward that is 0
  # for ever because of its reference or of a package that is not there.
  with pytest.raises(ValueError, match='must be above 0 seconds, got'):
    match('', '1', timeout=0.0)
  for answer in ('', ' . ', r'the area is \boxed{}'):
    with pytest.raises(ValueError, match='reference answer is empty'):
      match('', answer)
  monkeypatch.setattr(child.importlib.util, 'find_spec', lambda name: None)
  child._check_installed.cache_clear()
  with pytest.raises(ValueError, match=r"pip install 'jopd\[math\]'"):
    match('', '1')
  child._check_installed.cache_clear()
