"""A reward that compares answers as mathematics, in a process of its own.

math-verify reads LaTeX into sympy, which can hang or fill the memory on what a
model writes, and its own time limits work in the main thread only. So it runs
in a child that the system ends when the time is over; see worker.py.
"""

import atexit
import contextlib
import functools
import importlib.util
import json
import logging
import re
import signal
import subprocess
import sys
import threading

from jopd.rewards import exact

_log = logging.getLogger(__name__)
_UNJUDGED = [0]  # answers without a verdict
_INTEGER = re.compile(r'-?[0-9]+')


def math_match(
  response_text: str,
  answer: str,
  *,
  marker: str = '',
  after: str = '',
  limit: float = 5.0,
) -> float:
  r"""1.0 if the stated answer is the reference as mathematics, else 0.0.

  So 1/2, \frac12 and 0.5 are one answer, as are \{1, 2\} and \{2, 1\}. Answers
  of one spelling, and integers, are compared here, at once and exactly; all
  others by math-verify in a child process, which takes from one to some
  hundreds of milliseconds for a new pair of answers and nothing for one that
  was met before. Where math-verify errs (units, numbers that agree to six
  decimals) is listed in tests/rewards/math_corpus.jsonl.

  An answer without a verdict in time counts as wrong, and so does one that the
  child does not survive; each is logged, and `unjudged` counts them. The time
  is that of a clock: on a machine that is busy, a response may lose its
  reward.

  Args:
    response_text: what the student wrote, decoded.
    answer: the reference, or a whole solution that states it likewise.
    marker: what stands before the answer, such as 'Answer:' or '####', as in
      `marked_answer`; a box behind it is opened. Empty: the answer is in the
      last '\boxed{...}' of the response.
    after: as in `exact_match`.
    limit: seconds for one answer, above 0.

  Raises: ValueError when the reference is empty, the limit is not above 0 or
    the package math-verify is missing.

  Example:
    >>> math_match(r'so \boxed{0.5}', r'\frac{1}{2}')
    1.0
  """
  _check_installed()
  if not limit > 0:
    raise ValueError(f'limit is in seconds and above 0, got {limit}')
  reference = _stated(answer, marker) if _states(answer, marker) else answer
  if reference is None or not exact.normalized(reference):
    raise ValueError('the reference answer is empty; nothing could match it')
  found = _stated(exact.spoken(response_text, after=after), marker)
  if found is None:
    return 0.0
  pair = exact.normalized(found), exact.normalized(reference)
  if pair[0] == pair[1]:
    return 1.0
  if all(_INTEGER.fullmatch(text) for text in pair):
    return 0.0
  verdict = _compare(*pair, limit)
  if verdict is None:
    _UNJUDGED[0] += 1
  return float(bool(verdict))


def unjudged() -> int:
  """Answers of this process so far that got no verdict and counted as wrong."""
  return _UNJUDGED[0]


@functools.cache
def _check_installed() -> None:
  if importlib.util.find_spec('math_verify') is None:
    raise ValueError(
      "math_match needs the package math-verify: pip install 'jopd[math]'"
    )


def _states(text: str, marker: str) -> bool:
  return (marker or r'\boxed{') in text


def _stated(text: str, marker: str) -> str | None:
  """The answer that a text states, without the signs around it."""
  if marker:
    text = exact.marked_answer(text, marker=marker) or ''
  if not marker or r'\boxed{' in text:
    text = exact.boxed_answer(text) or ''
  if len(text) > 1 and text[0] == text[-1] == '$':
    text = text.strip('$')
  # Braces that close more than they open would end the child's box.
  whole = exact.boxed_answer(rf'\boxed{{{text}}}')
  return text if text and whole == text.strip() else None


@functools.lru_cache(maxsize=2**16)
def _compare(found: str, reference: str, limit: float) -> bool | None:
  """The child's verdict; None without one."""
  verdict = _CHILD.ask(found, reference, limit)
  if verdict is None:
    _log.warning(
      'no verdict within %g s on %.80r, counted as wrong (%d so far)',
      *(limit, found, _CHILD.lost),
    )
  return verdict


class _Child:
  """The process that compares; started when needed, anew after it has died."""

  def __init__(self):
    self._lock = threading.Lock()
    self._process = None
    self.lost = 0  # answers without a verdict

  def ask(self, found: str, reference: str, limit: float) -> bool | None:
    """Whether the two are the same; None if it died over the question."""
    with self._lock:
      if self._process is None or self._process.poll() is not None:
        self.stop()
        self._start()
      process = self._process
      try:
        question = json.dumps([found, reference, limit])
        print(question, file=process.stdin, flush=True)
        reply = process.stdout.readline()
      except BrokenPipeError:
        reply = ''
      except BaseException:  # or its reply would answer the next question
        self.stop()
        raise
      if reply:
        return json.loads(reply)
      self.stop()
      self.lost += 1
      return None

  def _start(self) -> None:
    self._process = subprocess.Popen(
      # -P: a math.py where jopd is started must not become Python's.
      [sys.executable, '-P', '-W', 'ignore', '-m', 'jopd.rewards.worker'],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    if not self._process.stdout.readline():
      code = self.stop()
      raise RuntimeError(f'the process that compares answers ended with {code}')

  def stop(self) -> int | None:
    """Ends the process, if there is one; its exit code."""
    process, self._process = self._process, None
    if process is None:
      return None
    process.send_signal(signal.SIGKILL)
    with contextlib.suppress(BrokenPipeError), process:
      pass  # closes the pipes and waits
    return process.returncode


_CHILD = _Child()
atexit.register(_CHILD.stop)
