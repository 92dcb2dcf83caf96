"""Contexts: what a model reads before the response, `(Example) -> messages`.

A context is any function from an `Example` to chat messages that end with a
user turn. Student and teacher may have different ones, and that is where
privileged information lives: a teacher that is shown the answer is a context,
not another loss. A context never changes its example, and the response tokens
are the same under every context.

A context may also be told of the responses, `(Example, own, others) ->
messages`: what a teacher reads is then another thing for each of them. `own` is
the `ScoredResponse` that it scores, `others` are those to the same prompt, and None
says that there is nothing to tell.

The same functions serve a run as `config.context`, for what its students read:
there, `with_template` puts a prompt into the words that a teacher was trained
on.
"""

from collections.abc import Sequence
import hashlib
import re

from jopd.data.examples import Example, ScoredResponse


def same(example: Example) -> list[dict]:
  """The example's own messages: what the student reads by default."""
  return list(example.messages)


def with_system(example: Example, *, prompt: str) -> list[dict]:
  """The example's messages under the system turn `prompt`.

  For one rule or persona shared by every example; bind it once with
  `functools.partial(with_system, prompt='...')`. A system turn that the
  example brings along is replaced, so that there is always exactly one.

  Args:
    example: any example.
    prompt: content of the system turn.

  Returns:
    New messages; the example is left as it was.

  Example:
    >>> example = Example('a', [{'role': 'user', 'content': '1 + 1?'}])
    >>> [turn['role'] for turn in with_system(example, prompt='Be brief.')]
    ['system', 'user']
  """
  rest = [turn for turn in example.messages if turn['role'] != 'system']
  return [{'role': 'system', 'content': prompt}, *rest]


def with_template(example: Example, *, template: str) -> list[dict]:
  """The example's messages, its last turn put into other words.

  For prompts as a teacher met them when it was trained, such as a question and
  then the instruction to reason and to box the answer.

  Args:
    example: any example.
    template: text with '{prompt}', where the content of the last turn goes.
      Other braces are left as they are.

  Returns:
    New messages; the example is left as it was.

  Raises: ValueError for a template without its field.
  References: Li et al., Rethinking On-Policy Distillation, arXiv 2604.13016:
    the aligned template.

  Example:
    >>> example = Example('a', [{'role': 'user', 'content': '1 + 1?'}])
    >>> with_template(example, template='{prompt} Think.')[-1]['content']
    '1 + 1? Think.'
  """
  return _last_turn(example, template)


def with_answer(
  example: Example,
  *,
  template: str = (
    '{prompt}\n\nThe answer is {answer}. Solve the problem step by step, in'
    ' your own words, so that your solution reaches this answer.'
  ),
) -> list[dict]:
  """The example's messages, with the answer told in the last turn.

  The least that a self-teacher can be told. It knows where to arrive; what it
  says on the way is still its own.

  Args:
    example: one with an answer.
    template: text with '{prompt}' and '{answer}'.

  Returns:
    New messages; the example is left as it was.

  Raises: ValueError for a template without one of its fields, or an example
    without an answer.
  References: Zhu et al., The Many Faces of On-Policy Distillation, arXiv
    2605.11182: privileged information 'answer only'.

  Example:
    >>> example = Example('a', [{'role': 'user', 'content': '1 + 1?'}], '2')
    >>> with_answer(example, template='{prompt} (It is {answer}.)')
    [{'role': 'user', 'content': '1 + 1? (It is 2.)'}]
  """
  return _last_turn(example, template, answer=example.answer)


def with_solution(
  example: Example,
  *,
  template: str = (
    '{prompt}\n\nHere is a reference solution:\n\n{response}\n\nNow that you'
    ' have understood it, solve the problem step by step, in your own words.'
  ),
) -> list[dict]:
  """The example's messages, with its demonstration told in the last turn.

  The most that a self-teacher can be told. What it says may then be further
  from what the student would than with the answer alone.

  Args:
    example: one with a response.
    template: text with '{prompt}' and '{response}'.

  Returns:
    New messages; the example is left as it was.

  Raises: ValueError for a template without one of its fields, or an example
    without a response.
  References: Zhu et al., arXiv 2605.11182: privileged information 'full'; Zhao
    et al., Self-Distilled Reasoner (OPSD), arXiv 2601.18734.

  Example:
    >>> turns = [{'role': 'user', 'content': '1 + 1?'}]
    >>> example = Example('a', turns, response='Two.')
    >>> with_solution(example, template='{prompt} ({response})')[-1]['content']
    '1 + 1? (Two.)'
  """
  return _last_turn(example, template, response=example.response)


def with_suggestion(
  example: Example,
  *,
  template: str = (
    '{prompt}\n\nI think the answer is {suggestion}, but I am not sure.'
  ),
  among: Sequence[str] = tuple('0123456789'),
) -> list[dict]:
  """The example's messages, with a wrong answer suggested in the last turn.

  A prompt that asks to be agreed with: for students that should answer as if it
  had not been there, from a teacher that reads `same`.

  Args:
    example: any example. The suggestion is a function of its id, and never its
      answer.
    template: text with '{prompt}' and '{suggestion}'.
    among: what is suggested, at least one text that is not the answer.

  Returns:
    New messages; the example is left as it was.

  Raises: ValueError for a template without one of its fields, or nothing wrong
    to suggest.
  References: On-Policy Consistency Training, arXiv 2605.21834: sycophancy cues;
    the words are ours.

  Example:
    >>> example = Example('a', [{'role': 'user', 'content': '1 + 1?'}], '2')
    >>> brief = '{prompt} {suggestion}?'
    >>> told = with_suggestion(example, template=brief, among=('2', '3'))
    >>> told[-1]['content']
    '1 + 1? 3?'
  """
  wrong = [text for text in among if text != example.answer]
  if not wrong:
    raise ValueError(f'among = {among!r} has nothing wrong to suggest')
  drawn = int.from_bytes(hashlib.sha256(example.id.encode()).digest()[:8])
  return _last_turn(example, template, suggestion=wrong[drawn % len(wrong)])


def with_success(
  example: Example,
  own: ScoredResponse,
  others: Sequence[ScoredResponse],
  *,
  template: str = (
    '{prompt}\n\nHere is a correct solution:\n\n{response}\n\nNow that you'
    ' have understood it, solve the problem step by step, in your own words.'
  ),
  least: float = 1.0,
) -> list[dict] | None:
  """The example's messages, with a right attempt of others in the last turn.

  A self-teacher that learns from its own luck: no demonstration is needed, only
  that one response of a group is right. The first of the others that is.

  Args:
    example: any example.
    own: the response that will be scored; never told.
    others: those to the same prompt.
    template: text with '{prompt}' and '{response}'.
    least: the reward that is enough.

  Returns:
    New messages; None where no other response is right.

  Raises: ValueError for a template without one of its fields.
  References: Huebotter et al., SDPO, arXiv 2601.20802: successful rollouts as
    feedback to the others; the words of its template are its own.

  Example:
    >>> example = Example('a', [{'role': 'user', 'content': '1 + 1?'}])
    >>> own, other = ScoredResponse('3', 0.0), ScoredResponse('2', 1.0)
    >>> with_success(example, own, [other], template='{prompt} ({response})')
    [{'role': 'user', 'content': '1 + 1? (2)'}]
  """
  right = [x for x in others if x.reward is not None and x.reward >= least]
  if not right:
    return None
  return _last_turn(example, template, response=right[0].text)


def with_attempt(
  example: Example,
  own: ScoredResponse,
  others: Sequence[ScoredResponse],
  *,
  template: str = (
    '{prompt}\n\nHere is an attempt at it:\n\n{response}\n\nIts verdict:'
    ' {feedback}. Solve the problem again, step by step.'
  ),
  right: str = 'correct',
  wrong: str = 'wrong',
  least: float = 1.0,
) -> list[dict] | None:
  """The example's messages, with the attempt itself and its verdict told.

  A self-teacher with hindsight: it scores the tokens of an attempt of which it
  knows how it ended.

  Args:
    example: any example.
    own: the response that will be scored.
    others: those to the same prompt; not told.
    template: text with '{prompt}', '{response}' and '{feedback}'.
    right: the feedback on a response of enough reward.
    wrong: that on another.
    least: the reward that is enough.

  Returns:
    New messages; None where nobody graded.

  Raises: ValueError for a template without one of its fields.
  References: Huebotter et al., SDPO, arXiv 2601.20802: feedback on its own
    attempt; the words of its template are its own.

  Example:
    >>> example = Example('a', [{'role': 'user', 'content': '1 + 1?'}])
    >>> brief = '{prompt} Not {response}: {feedback}.'
    >>> with_attempt(example, ScoredResponse('3', 0.0), [], template=brief)
    [{'role': 'user', 'content': '1 + 1? Not 3: wrong.'}]
  """
  if own.reward is None:
    return None
  verdict = right if own.reward >= least else wrong
  return _last_turn(example, template, response=own.text, feedback=verdict)


def _last_turn(example: Example, template: str, **fields) -> list[dict]:
  """The messages, the last one's content put into a template with others."""
  *before, last = example.messages
  fields = {'prompt': last['content'], **fields}
  for name, text in fields.items():
    if f'{{{name}}}' not in template:
      raise ValueError(
        f'the template needs the field {{{name}}}, got {template[:80]!r}'
      )
    if text is None:
      raise ValueError(
        f'the example has no {name} to tell; name its field in the data'
        f' ({name}_field), or take another context'
      )
  # One pass: a field inside a text that was put in is text.
  field = re.compile('|'.join(f'{{{name}}}' for name in fields))
  content = field.sub(lambda found: fields[found[0][1:-1]], template)
  return [*before, {**last, 'content': content}]
