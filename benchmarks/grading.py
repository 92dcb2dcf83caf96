"""How many answers a second `math_match` grades, and what a hang costs.

  python benchmarks/grading.py

One process asks one child, answer by answer, as in a run. Integers and answers
of one spelling never reach the child; the others are new pairs each time, so
that none is known already.
"""

import time

from jopd.data.examples import Example
from jopd.rewards import NoVerdictError, Response, math_match

KINDS = {
  'integers': lambda n: (str(n), '7'),
  'fractions': lambda n: (rf'\frac{{{n}}}{{{n + 1}}}', r'\frac{1}{2}'),
  'radicals': lambda n: (rf'{n}\sqrt{{{n + 2}}}', r'2\sqrt{2}'),
  'polynomials': lambda n: (f'x^2+{n}x+1', '(x+1)^2'),
}


def match(text: str, answer: str, **settings) -> float:
  example = Example('a', [], answer=answer)
  return math_match(Response(text), example, **settings)


def main():
  """Prints a line per kind of answer."""
  match(r'\boxed{1/2}', r'\frac{1}{2}')  # starts the child
  for name, make in KINDS.items():
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < 3:
      found, answer = make(count)
      match(rf'\boxed{{{found}}}', answer)
      count += 1
    seconds = time.perf_counter() - start
    print(f'{name:12} {count / seconds:10.0f} answers/s')
  start = time.perf_counter()
  try:
    match(r'\boxed{10^{10^{10}}}', '1', timeout=1.0)
  except NoVerdictError:
    match(r'\boxed{1/2}', '0.50')
  seconds = time.perf_counter() - start
  print(f'a hang, timeout 1 s, and the next answer: {seconds:.1f} s')


if __name__ == '__main__':
  main()
