"""Contexts: what a model reads before the response, `(Example) -> messages`.

A context is any function from an `Example` to chat messages that end with a
user turn. Student and teacher may have different ones, and that is where
privileged information lives: a teacher that is shown the answer is a context,
not another loss. A context never changes its example, and the response tokens
are the same under every context.
"""

from jopd.data.examples import Example


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
