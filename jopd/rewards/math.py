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
from jopd.rewards.grading import Example, NoVerdictError, Response

_log = logging.getLogger(__name__)
_INTEGER = re.compile(r'-?[0-9]+')


def math_match(
  response: Response,
  example: Example,
  *,
  marker: str = '',
  after: str = '',
  timeout: float = 5.0,
) -> float | None:
  r"""1.0 if the stated answer is the example's as mathematics, else 0.0.

  So 1/2, \frac12 and 0.5 are one answer, as are \{1, 2\} and \{2, 1\}. Answers
  of one spelling, and integers, are compared here, at once and exactly; all
  others by math-verify in a child process, which takes from one to some
  hundreds of milliseconds for a new pair of answers and nothing for a pair that
  it has seen. tests/rewards/math_corpus.jsonl lists where math-verify errs
  (units, numbers that agree to six decimals).

  The timeout is wall-clock time: on a busy machine a response may lose its
  reward.

  Args:
    response: what the student wrote.
    example: its answer may be a whole solution that states it likewise; None
      without an answer.
    marker: what stands before the answer, such as 'Answer:' or '####', as in
      `marked_answer`; a box behind it is opened. Empty: the answer is in the
      last '\boxed{...}' of the response.
    after: as in `exact_match`.
    timeout: seconds for one answer, above 0.

  Raises:
    NoVerdictError: the child took too long over the answer, or died.
    ValueError: the example's answer is empty, the timeout is not above 0 or the
      package math-verify is missing.

  Example:
    >>> from jopd.data.examples import Example
    >>> example = Example('a', [], answer=r'\frac{1}{2}')
    >>> math_match(Response(r'so \boxed{0.5}'), example)
    1.0
  """
  _check_installed()
  if not timeout > 0:
    raise ValueError(f'timeout must be above 0 seconds, got {timeout}')
  answer = example.answer
  if answer is None:
    return None
  states_it = (marker or r'\boxed{') in answer
  reference = _stated(answer, marker) if states_it else answer
  exact.check_reference(reference)
  stated = _stated(exact.text_after(response.text, after), marker)
  if stated is None:
    return 0.0
  pair = exact.normalized(stated), exact.normalized(reference)
  if pair[0] == pair[1]:
    return 1.0
  if all(_INTEGER.fullmatch(text) for text in pair):
    return 0.0
  verdict = _compare(*pair, timeout)
  if verdict is None:
    raise NoVerdictError(f'no verdict on {stated:.80}')
  return float(verdict)


@functools.cache
def _check_installed() -> None:
  if importlib.util.find_spec('math_verify') is None:
    raise ValueError(
      "math_match needs the package math-verify: pip install 'jopd[math]'"
    )


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
def _compare(stated: str, reference: str, timeout: float) -> bool | None:
  """The child's verdict; None without one."""
  verdict = _CHILD.compare(stated, reference, timeout)
  if verdict is None:
    _log.warning(
      'no verdict within %g s on %.80r; its reward is 0 (%d such answers so'
      ' far)',
      timeout,
      stated,
      _CHILD.lost,
    )
  return verdict


class _Child:
  """The process that compares; started when needed, anew after it has died."""

  def __init__(self):
    self._lock = threading.Lock()
    self._process = None
    self.lost = 0  # answers without a verdict

  def compare(self, stated: str, reference: str, timeout: float) -> bool | None:
    """Whether the two are the same; None if the process died over them."""
    with self._lock:
      if self._process is None or self._process.poll() is not None:
        self.stop()
        self._start()
      process = self._process
      try:
        question = json.dumps([stated, reference, timeout])
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
