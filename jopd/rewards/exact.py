"""Rewards that compare a stated answer with the reference, as text.

Nothing is evaluated or parsed as mathematics: '1/2' is not '0.5' here.
"""

import re

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
  _, found, rest = text.rpartition(marker)
  if not found:
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
  _, found, rest = text.rpartition(r'\boxed{')
  if not found:
    return None
  depth = 1
  for match in re.finditer(r'\\.|[{}]', rest, re.DOTALL):
    depth += {'{': 1, '}': -1}.get(match[0], 0)
    if depth == 0:
      return rest[: match.start()].strip() or None
  return None


def spoken(text: str, *, after: str) -> str:
  """What follows the last `after` in a text, '' where it is missing.

  For models that think aloud first: with after='</think>' a box in the thoughts
  is no answer, and a response cut off in its thoughts has none. An empty
  `after` leaves the whole text.

  Example:
    >>> spoken('<think>4? No.</think>5', after='</think>')
    '5'
  """
  if not after:
    return text
  _, found, rest = text.rpartition(after)
  return rest if found else ''


def exact_match(
  response_text: str, answer: str, *, marker: str = '####', after: str = ''
) -> float:
  """1.0 if the marked answer of the response is `answer`, else 0.0.

  Both are compared after `normalized`. A response without the marker earns
  nothing, whatever it says.

  Args:
    response_text: what the student wrote, decoded.
    answer: the reference; may be a whole solution with its own marker.
    marker: as in `marked_answer`.
    after: what ends the thoughts of a model that thinks aloud, '</think>': only
      what follows is read, as in `spoken`. Empty: all of the response.

  Raises: ValueError when the reference is empty, which nothing could match.

  Example:
    >>> exact_match('1,000 and 234 more #### 1,234', '1234')
    1.0
  """
  reference = (
    marked_answer(answer, marker=marker) if marker in answer else answer
  )
  said = spoken(response_text, after=after)
  return _same(marked_answer(said, marker=marker), reference)


def boxed_match(response_text: str, answer: str, *, after: str = '') -> float:
  r"""Like `exact_match`, with the answer in '\boxed{...}'."""
  reference = boxed_answer(answer) if r'\boxed{' in answer else answer
  return _same(boxed_answer(spoken(response_text, after=after)), reference)


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


def _same(found: str | None, reference: str | None) -> float:
  """1.0 if both are answers and have one spelling."""
  if reference is None or not normalized(reference):
    raise ValueError('the reference answer is empty; nothing could match it')
  return float(found is not None and normalized(found) == normalized(reference))
