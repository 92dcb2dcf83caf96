"""Contexts: what a model reads before the response, `(Example) -> messages`.

A context is any function from an `Example` to chat messages that end with a
user turn. Student and teacher may have different ones, and that is where
privileged information lives: a teacher that is shown the answer is a context,
not another loss. A context never changes its example, and the response tokens
are the same under every context.

A rollout context also reads the responses: `(Example, response, others) ->
messages or None`, marked with `@rollout_context`. What a teacher reads is then
different for each response. `response` is the `ScoredResponse` that the teacher
scores, `others` are those to the same prompt; None means that the teacher reads
the student's prompt.

The same functions serve as `config.context`, for what the students of a run
read: there, `with_template` phrases a prompt as a teacher was trained on it.
"""

from collections.abc import Callable, Sequence
import functools
import hashlib
import re

from jopd.data.examples import Example, ScoredResponse


def rollout_context(context: Callable) -> Callable:
  """Decorator: marks a context that also reads the responses."""
  context.reads_rollouts = True
  return context


def reads_rollouts(context: Callable) -> bool:
  """Whether a context, or the function of a partial, is a rollout context."""
  while isinstance(context, functools.partial):
    context = context.func
  return getattr(context, 'reads_rollouts', False)


def same(example: Example) -> list[dict]:
  """The example's own messages: what the student reads by default."""
  return list(example.messages)


def with_system(example: Example, *, prompt: str) -> list[dict]:
  """The example's messages under the system turn `prompt`.

  For one rule or persona shared by every example; bind it once with
  `functools.partial(with_system, prompt='...')`. A system turn that the
  example brings along is replaced, so that there is always exactly one.

  Args:
    prompt: content of the system turn.

  Example:
    >>> example = Example('a', [{'role': 'user', 'content': '1 + 1?'}])
    >>> [turn['role'] for turn in with_system(example, prompt='Be brief.')]
    ['system', 'user']
  """
  rest = [turn for turn in example.messages if turn['role'] != 'system']
  return [{'role': 'system', 'content': prompt}, *rest]


def with_template(example: Example, *, template: str) -> list[dict]:
  """The example's messages, with the last turn put into a template.

  For prompts as a teacher was trained on them, such as a question and then the
  instruction to reason and to box the answer.

  Args:
    template: text with '{prompt}', where the content of the last turn goes.
      Other braces are left as they are.

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
  """The example's messages, with the answer in the last turn.

  The smallest privilege of a self-teacher: it knows the answer, and still
  writes the steps itself.

  Args:
    example: one with an answer.
    template: text with '{prompt}' and '{answer}'.

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
  """The example's messages, with its demonstration in the last turn.

  The largest privilege of a self-teacher, which may then write less like the
  student than with the answer alone.

  Args:
    example: one with a response.
    template: text with '{prompt}' and '{response}'.

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

  For students that should answer as if the suggestion were not there, from a
  teacher that reads `same`.

  Args:
    example: any example. The suggestion is a function of its id, and never its
      answer.
    template: text with '{prompt}' and '{suggestion}'.
    among: the suggestions to choose from; one at least is not the answer.

  References: On-Policy Consistency Training, arXiv 2605.21834: sycophancy cues;
    the words are ours.

  Example:
    >>> example = Example('a', [{'role': 'user', 'content': '1 + 1?'}], '2')
    >>> brief = '{prompt} {suggestion}?'
    >>> with_suggestion(example, template=brief, among=('2', '3'))[-1][
    ...   'content'
    ... ]
    '1 + 1? 3?'
  """
  wrong = [text for text in among if text != example.answer]
  if not wrong:
    raise ValueError(f'among = {among!r} has nothing wrong to suggest')
  number = int.from_bytes(hashlib.sha256(example.id.encode()).digest()[:8])
  return _last_turn(example, template, suggestion=wrong[number % len(wrong)])


@rollout_context
def with_success(
  example: Example,
  response: ScoredResponse,
  others: Sequence[ScoredResponse],
  *,
  template: str = (
    '{prompt}\n\nHere is a correct solution:\n\n{response}\n\nNow that you'
    ' have understood it, solve the problem step by step, in your own words.'
  ),
  min_reward: float = 1.0,
) -> list[dict] | None:
  """The example's messages, with another, correct response in the last turn.

  For a self-teacher without demonstrations: one correct response in a group is
  enough. The first correct one of the others is shown.

  Args:
    response: that the teacher will score; never shown.
    others: the other responses to the same prompt.
    template: text with '{prompt}' and '{response}'.
    min_reward: from which a response is correct.

  Returns:
    New messages; None if no other response is correct.

  References: Huebotter et al., SDPO, arXiv 2601.20802: successful rollouts as
    feedback to the others; the words of its template are its own.

  Example:
    >>> example = Example('a', [{'role': 'user', 'content': '1 + 1?'}])
    >>> wrong, right = ScoredResponse('3', 0.0), ScoredResponse('2', 1.0)
    >>> with_success(example, wrong, [right], template='{prompt} ({response})')
    [{'role': 'user', 'content': '1 + 1? (2)'}]
  """
  for other in others:
    if other.reward is not None and other.reward >= min_reward:
      return _last_turn(example, template, response=other.text)
  return None


@rollout_context
def with_attempt(
  example: Example,
  response: ScoredResponse,
  others: Sequence[ScoredResponse],
  *,
  template: str = (
    '{prompt}\n\nHere is an attempt at it:\n\n{response}\n\nIts verdict:'
    ' {feedback}. Solve the problem again, step by step.'
  ),
  right: str = 'correct',
  wrong: str = 'wrong',
  min_reward: float = 1.0,
) -> list[dict] | None:
  """The example's messages, with the response itself and its verdict.

  A self-teacher with hindsight: it scores the tokens of a response and knows
  whether it was correct.

  Args:
    response: that the teacher will score.
    others: the other responses to the same prompt; not used.
    template: text with '{prompt}', '{response}' and '{feedback}'.
    right: the feedback on a correct response.
    wrong: the feedback on any other.
    min_reward: from which a response is correct.

  Returns:
    New messages; None if the response has no reward.

  References: Huebotter et al., SDPO, arXiv 2601.20802: feedback on its own
    attempt; the words of its template are its own.

  Example:
    >>> example = Example('a', [{'role': 'user', 'content': '1 + 1?'}])
    >>> brief = '{prompt} Not {response}: {feedback}.'
    >>> with_attempt(example, ScoredResponse('3', 0.0), [], template=brief)
    [{'role': 'user', 'content': '1 + 1? Not 3: wrong.'}]
  """
  if response.reward is None:
    return None
  feedback = right if response.reward >= min_reward else wrong
  return _last_turn(
    example, template, response=response.text, feedback=feedback
  )


def _last_turn(example: Example, template: str, **fields) -> list[dict]:
  """The messages; the template, filled in, is the content of the last one."""
  *before, last = example.messages
  fields = {'prompt': last['content'], **fields}
  for name, text in fields.items():
    if f'{{{name}}}' not in template:
      raise ValueError(
        f'the template needs the field {{{name}}}, got {template[:80]!r}'
      )
    if text is None:
      raise ValueError(
        f'example {example.id} has no {name}; name its column in the data'
        f' ({name}_field), or choose another context'
      )
  # One pass: a field inside a text that was put in is text.
  field = re.compile('|'.join(f'{{{name}}}' for name in fields))
  content = field.sub(lambda match: fields[match[0][1:-1]], template)
  return [*before, {**last, 'content': content}]
