"""The builtin tasks: small sums, each for one effect of distillation.

An example is a pure function of (seed, split, index) on every machine. The
split of a prompt is decided by a hash of its numbers (one in eight is a test
prompt), so no test prompt is ever trained on, whatever the seeds and counts.
"""

from collections.abc import Mapping, Sequence
import hashlib
import itertools

import numpy as np

from jopd.data.examples import Example, Lazy, Rejected


def running_sum(
  *,
  count: int,
  length: int = 6,
  modulus: int = 10,
  direction: str = 'forward',
  seed: int = 0,
  split: str = 'train',
) -> Lazy:
  """Running sums modulo `modulus`, step by step: errors grow along a rollout.

  The user gives `length` numbers below `modulus`; the response is their
  running sums and then, after '####', the last of them. One wrong step makes
  every later one wrong. The sum may also start at the other end: two styles
  with one answer, for teachers that are right in another way.

  Args:
    count: number of examples. Prompts may repeat, as they are drawn freely.
    length: numbers per prompt.
    modulus: 2 to 100; from 11 on some numbers have two digits.
    direction: 'forward' sums from the first number on, 'backward' from the
      last. Prompts and answers are the same, the steps between are not.
    seed: another seed gives other examples.
    split: 'train' or 'test'.

  Returns:
    A lazy sequence; the answer is the last sum, the response the whole line.

  Raises: ValueError for a direction, modulus or split out of range, or when
    there are fewer than 64 prompts to draw from.

  Example:
    >>> running_sum(count=1)[0].response
    '8 3 1 3 8 4 #### 4'
    >>> running_sum(count=1, direction='backward')[0].response
    '6 1 3 1 6 4 #### 4'
  """
  if direction not in ('forward', 'backward'):
    raise ValueError(
      f"direction must be 'forward' or 'backward', got {direction!r}"
    )
  draw = _numbers('running_sum', count, length, modulus, seed, split)
  step = 1 if direction == 'forward' else -1

  def make(index: int) -> Example:
    numbers = draw(index)
    sums = [str(total) for total in np.cumsum(numbers[::step]) % modulus]
    return Example(
      id=f'running_sum/{split}/{index}',
      messages=[{'role': 'user', 'content': _line(numbers)}],
      answer=sums[-1],
      response=f'{" ".join(sums)} #### {sums[-1]}',
    )

  return Lazy(count, make)


def shift(
  *,
  count: int,
  length: int = 4,
  modulus: int = 10,
  rule: int | None = None,
  hint_fraction: float = 0.0,
  hint: str = 'rule',
  seed: int = 0,
  split: str = 'train',
) -> Lazy:
  """Numbers plus a rule that the prompt may not state.

  The user gives `length` numbers below `modulus`; the response adds the rule
  to each of them, modulo `modulus`: for each number the rule, then the sum, and
  after '####' the rule once more. Without the rule in its prompt a model can
  only guess it. It can learn a rule that all examples share, but not one that
  differs between examples. The rule is the answer: `contexts.with_answer` adds
  it to a prompt, as a hint does if the template is '{answer} + {prompt}'.

  Args:
    count: number of examples. Prompts may repeat, as they are drawn freely.
    length: numbers per prompt.
    modulus: 2 to 100; from 11 on some numbers have two digits.
    rule: the number to add, below `modulus`; None draws one per example.
    hint_fraction: fraction of the prompts that begin with a hint.
    hint: 'rule', as in '3 + 4 0 2', or 'worked', the whole response before the
      prompt, as a rollout context shows a response.
    seed: another seed gives other examples.
    split: 'train' or 'test'.

  Returns:
    A lazy sequence; the answer is the rule, the response the whole line.

  Raises: ValueError for a modulus, rule, fraction, hint or split out of range,
    or when there are fewer than 64 prompts to draw from.

  Example:
    >>> example = shift(count=1, rule=3, hint_fraction=1.0)[0]
    >>> example.messages[0]['content'], example.response
    ('3 + 8 5 8 2', '3 1 3 8 3 1 3 5 #### 3')
  """
  if rule is not None and not 0 <= rule < modulus:
    raise ValueError(f'rule must be from 0 to {modulus - 1}, got {rule}')
  if not 0 <= hint_fraction <= 1:
    raise ValueError(f'hint_fraction must be from 0 to 1, got {hint_fraction}')
  if hint not in ('rule', 'worked'):
    raise ValueError(f"hint must be 'rule' or 'worked', got {hint!r}")
  draw = _numbers('shift', count, length, modulus, seed, split)

  def make(index: int) -> Example:
    numbers = draw(index)
    drawn, chance = _noise(f'shift/{seed}/{split}/{index}', 2).tolist()
    added = drawn % modulus if rule is None else rule
    steps = ' '.join(f'{added} {x}' for x in (numbers + added) % modulus)
    response = f'{steps} #### {added}'
    before = f'{added if hint == "rule" else response} + '
    has_hint = chance < hint_fraction * 2**64
    prompt = (before if has_hint else '') + _line(numbers)
    return Example(
      id=f'shift/{split}/{index}',
      messages=[{'role': 'user', 'content': prompt}],
      answer=str(added),
      response=response,
    )

  return Lazy(count, make)


def blend(*, parts: Mapping[str, Sequence[Example | Rejected]]) -> Lazy:
  """Several sources one after the other, each example marked with its domain.

  A term of the loss may then learn from the rows of one domain (`rows`), so
  that each of several teachers has its own. The sizes of the parts decide how
  many rows of a domain a batch has, but not the weight of a term, which is
  divided by the number of its own tokens.

  Args:
    parts: domain -> examples; in a config, a source and its arguments.

  Returns:
    A lazy sequence; ids are '<domain>/<id>'.

  Raises: ValueError when there are no parts, or one is empty.

  Example:
    >>> sums, rules = running_sum(count=2), shift(count=1)
    >>> both = blend(parts=dict(sums=sums, rules=rules))
    >>> [(example.domain, example.id) for example in both][1:]
    [('sums', 'sums/running_sum/train/1'), ('rules', 'rules/shift/train/0')]
  """
  empty = [name for name, part in parts.items() if not len(part)]
  if not parts or empty:
    raise ValueError(f'blend needs parts with examples; {empty} have none')
  names = list(parts)
  ends = np.cumsum([len(parts[name]) for name in names])

  def make(index: int) -> Example | Rejected:
    part = int(np.searchsorted(ends, index, side='right'))
    name = names[part]
    example = parts[name][index - int(ends[part])]  # counted from its end
    if isinstance(example, Rejected):
      return example._replace(reason=f'{name}: {example.reason}')
    return example._replace(id=f'{name}/{example.id}', domain=name)

  return Lazy(int(ends[-1]), make)


def _numbers(task: str, count: int, length: int, modulus: int, seed, split):
  """A function from an index to its numbers."""
  if split not in ('train', 'test'):
    raise ValueError(f"split must be 'train' or 'test', got {split!r}")
  if not 2 <= modulus <= 100:
    raise ValueError(f'modulus must be from 2 to 100, got {modulus}')
  if count < 1 or length < 1 or modulus**length < 64:
    raise ValueError(
      f'{task} needs count >= 1 and at least 64 different prompts '
      f'(modulus ** length), got count={count}, modulus={modulus}, '
      f'length={length}'
    )

  def draw(index: int) -> np.ndarray:
    for attempt in itertools.count():
      numbers = _noise(f'{seed}/{split}/{index}/{attempt}', length) % modulus
      is_test = hashlib.sha256(_line(numbers).encode()).digest()[0] < 32
      if is_test == (split == 'test'):
        break
    return numbers

  return draw


def _noise(name: str, count: int) -> np.ndarray:
  """`count` random 64-bit numbers, by a hash: NumPy's streams may change."""
  noise = hashlib.shake_256(name.encode()).digest(8 * count)
  return np.frombuffer(noise, '<u8')


def _line(numbers: np.ndarray) -> str:
  """The numbers as a line of text."""
  return ' '.join(map(str, numbers))
