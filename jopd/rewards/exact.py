"""Rewards that compare a stated answer with the reference, as text.

Nothing is evaluated or parsed as mathematics: '1/2' is not '0.5' here.
"""

import re

from jopd.rewards.grading import Example, Response

_NUMBER = re.compile(r'([+-]?)([0-9]*)(?:\.([0-9]*))?')
_GROUPED = re.compile(r'[+-]?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]*)?')
# Not '!': 5! is an answer.
_END = '.,;: \t\r'
# Turn and sequence ends, should the text have been decoded with them.
_SPECIAL = re.compile(r'<\||</s>|<eos>')


def marked_answer(text: str, *, marker: str = '####') -> str | None:
  """The rest of the line after the last `marker`, or None.

  The last marker counts, so that a response may correct itself. White space,
  punctuation at the end ('.', ',', ';', ':') and anything from a special token
  on are left out.

  Args:
    text: a response, or a reference solution (GSM8K's end in '#### 72').
    marker: what stands before the answer.

  Returns:
    The answer; None without a marker or with nothing after it.

  Raises: ValueError for an empty marker.

  Example:
    >>> marked_answer('3 + 4 is 7. #### 7.')
    '7'
  """
  if not marker:
    raise ValueError("marker must be text such as '####', got ''")
  _, present, rest = text.rpartition(marker)
  if not present:
    return None
  line = _SPECIAL.split(rest, maxsplit=1)[0].partition('\n')[0]
  return line.rstrip(_END).lstrip() or None


def boxed_answer(text: str) -> str | None:
  r"""What stands in the last '\boxed{...}', inner braces included, or None.

  An escaped brace ('\{') opens and closes nothing. None without a box, or when
  the last one is never closed, as in a response that was cut off.

  Example:
    >>> boxed_answer(r'so \boxed{\frac{1}{2}}.')
    '\\frac{1}{2}'
  """
  _, present, rest = text.rpartition(r'\boxed{')
  if not present:
    return None
  depth = 1
  for match in re.finditer(r'\\.|[{}]', rest, re.DOTALL):
    depth += {'{': 1, '}': -1}.get(match[0], 0)
    if depth == 0:
      return rest[: match.start()].strip() or None
  return None


def text_after(text: str, mark: str) -> str:
  """What follows the last `mark` in a text, '' without one.

  For models that think before they answer: with the mark '</think>' a box in
  the thoughts is not an answer, and a response that was cut off while thinking
  has none. An empty mark leaves the whole text.

  Example:
    >>> text_after('<think>4? No.</think>5', '</think>')
    '5'
  """
  if not mark:
    return text
  _, present, rest = text.rpartition(mark)
  return rest if present else ''


def exact_match(
  response: Response, example: Example, *, marker: str = '####', after: str = ''
) -> float | None:
  """1.0 if the marked answer of the response is the example's, else 0.0.

  Both are compared after `normalized`. A response without the marker earns
  nothing.

  Args:
    response: what the student wrote.
    example: its answer may be a whole solution with its own marker; None
      without an answer.
    marker: as in `marked_answer`.
    after: text that ends the thoughts of a model, such as '</think>': only what
      follows is read. Empty: the whole response.

  Raises: ValueError if the answer is empty, which nothing could match.

  Example:
    >>> from jopd.data.examples import Example
    >>> example = Example('a', [], answer='1234')
    >>> exact_match(Response('1,000 and 234 more #### 1,234'), example)
    1.0
  """
  answer = example.answer
  if answer is None:
    return None
  reference = (
    marked_answer(answer, marker=marker) if marker in answer else answer
  )
  text = text_after(response.text, after)
  return _same(marked_answer(text, marker=marker), reference)


def boxed_match(
  response: Response, example: Example, *, after: str = ''
) -> float | None:
  r"""Like `exact_match`, with the answer in '\boxed{...}'."""
  answer = example.answer
  if answer is None:
    return None
  reference = boxed_answer(answer) if r'\boxed{' in answer else answer
  return _same(boxed_answer(text_after(response.text, after)), reference)


def normalized(answer: str) -> str:
  """One spelling for answers that are the same text or the same number.

  Runs of white space become one space, punctuation at the end goes. A number
  loses the commas between its groups of three digits, a leading '+', leading
  zeros and zeros at the end of its decimals, exactly, at any length. Case
  counts.

  Example:
    >>> [normalized(text) for text in ('+1,234.50', '007', '-0', ' a  b. ')]
    ['1234.5', '7', '0', 'a b']
  """
  text = ' '.join(answer.split()).rstrip(_END)
  text = text.replace('\N{MINUS SIGN}', '-')
  if _GROUPED.fullmatch(text):
    text = text.replace(',', '')
  number = _NUMBER.fullmatch(text)
  if not number or not (number[2] or number[3]):
    return text
  whole = number[2].lstrip('0') or '0'
  decimals = (number[3] or '').rstrip('0')
  value = f'{whole}.{decimals}' if decimals else whole
  return f'-{value}' if number[1] == '-' and value != '0' else value


def check_reference(reference: str | None) -> None:
  """Raises: ValueError for an answer that nothing could match."""
  if reference is None or not normalized(reference):
    raise ValueError('the reference answer is empty; nothing could match it')


def _same(stated: str | None, reference: str | None) -> float:
  """1.0 if both are answers and have one spelling."""
  check_reference(reference)
  return float(
    stated is not None and normalized(stated) == normalized(reference)
  )
