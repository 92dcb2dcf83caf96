"""The process in which answers are compared as mathematics.

`math.py` starts it, `python -m jopd.rewards.worker`, and sends one JSON line
per question, [answer, reference, seconds]; it replies 'true' or 'false'. When
the seconds are over the system ends it, even in the middle of one huge power,
where no Python handler would run; it ends by itself when its input closes. It
reads answers of a model: they are parsed as LaTeX, and the `eval` with which
sympy reads numbers is replaced.
"""

import contextlib
import json
import logging
import os
import re
import resource
import signal
import sys

import math_verify
import sympy
from sympy.parsing import sympy_parser

# A power of a power fills any memory before its time is over.
_MEMORY = 4 * 2**30
# As sympy spells what it reads: "Float ('0.5' )".
_LITERAL = re.compile(
  r"(?P<kind>Integer|Float|Symbol) \('?(?P<text>[0-9A-Za-z_.]+)'? \)"
)


def main() -> None:
  """Answers the questions on standard input until it closes."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
  signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which ends the process
  with contextlib.suppress(ValueError, OSError):  # not on every system
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
  logging.disable(logging.CRITICAL)
  replies = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)  # what a library prints is no reply
  same = _make_same()
  same('1', '2')  # the first time builds tables
  print('ready', file=replies, flush=True)
  for line in sys.stdin:
    answer, reference, seconds = json.loads(line)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    reply = json.dumps(same(answer, reference))
    signal.setitimer(signal.ITIMER_REAL, 0)
    print(reply, file=replies, flush=True)


def _make_same():
  """(answer, reference) -> whether they are the same mathematics."""
  # The only call of `eval` on text in sympy.
  sympy_parser.eval_expr = _literal
  latex = [math_verify.LatexExtractionConfig(boxed_match_priority=0)]

  def read(text: str) -> list:
    return math_verify.parse(
      f'\\boxed{{{text}}}', extraction_config=latex, parsing_timeout=None
    )

  def same(answer: str, reference: str) -> bool:
    # The order matters: what the reference leaves open, the answer may fill.
    return math_verify.verify(
      read(reference), read(answer), timeout_seconds=None
    )

  return same


def _literal(code: str, local_dict, global_dict):
  """Instead of sympy's `eval`: numbers, symbols and e, and nothing else."""
  if code.strip() == 'E':
    return sympy.E
  literal = _LITERAL.fullmatch(code.strip())
  if not literal:
    raise ValueError('answers are not evaluated as Python')
  return getattr(sympy, literal['kind'])(literal['text'])


if __name__ == '__main__':
  main()
