"""Contexts: what a model reads before the response."""

import doctest

import pytest

from jopd.data import contexts, sources
from jopd.data.examples import Example


def _example(*roles):
  return Example('a', [{'role': role, 'content': role} for role in roles])


def test_the_shared_rule_is_the_only_system_turn():
  # Kills: a second system turn, which most chat templates refuse.
  for roles in (['user'], ['system', 'user', 'assistant', 'user']):
    turns = contexts.with_system(_example(*roles), prompt='rule')
    assert turns[0] == {'role': 'system', 'content': 'rule'}
    assert [t['role'] for t in turns[1:]] == [r for r in roles if r != 'system']


def test_contexts_leave_their_example_as_it_was():
  # Kills: inserting into the example's own list, so that the student reads
  # what only the teacher may.
  example = _example('user')
  contexts.same(example).append({'role': 'user', 'content': 'more'})
  contexts.with_system(example, prompt='rule').append({})
  contexts.with_template(example, template='{prompt}')[0]['content'] = 'more'
  assert example == _example('user')


def test_examples_print_what_they_say():
  assert doctest.testmod(contexts).failed == 0


FULL = Example(
  'a',
  [
    {'role': 'system', 'content': 'Be brief.'},
    {'role': 'user', 'content': 'first'},
    {'role': 'assistant', 'content': 'reply'},
    {'role': 'user', 'content': 'What is {answer}?'},
  ],
  answer='{prompt}',
  response=r'\boxed{7}',
)


def test_only_the_last_turn_is_put_into_other_words():
  # Kills: fields that are filled one after the other, so that a prompt which
  # spells '{answer}' is filled too; str.format, which fails at '\boxed{}';
  # another turn that is touched; a group reference in the text put in.
  told = contexts.with_answer(FULL, template=r'{prompt} \boxed{} {answer}')
  assert told[:-1] == FULL.messages[:-1]
  assert told[-1] == {
    'role': 'user',
    'content': r'What is {answer}? \boxed{} {prompt}',
  }
  shown = contexts.with_solution(FULL, template='{response} {prompt} {answer}')
  assert shown[-1]['content'] == r'\boxed{7} What is {answer}? {answer}'


def test_the_default_templates_tell_what_they_should():
  # Kills: a default that lacks one of its own fields.
  for context, text in (
    (contexts.with_answer, FULL.answer),
    (contexts.with_solution, FULL.response),
  ):
    content = context(FULL)[-1]['content']
    assert content.startswith('What is {answer}?') and text in content


@pytest.mark.parametrize(
  'context, template, example, message',
  [
    ('with_template', 'Think.', FULL, r'needs the field {prompt}, got .Think'),
    ('with_answer', '{prompt}', FULL, 'needs the field {answer}'),
    ('with_answer', '{answer}', FULL, 'needs the field {prompt}'),
    ('with_solution', '{prompt}', FULL, 'needs the field {response}'),
    (
      *('with_answer', '{prompt}{answer}', FULL._replace(answer=None)),
      'no answer to tell; .*answer_field',
    ),
    (
      *('with_solution', '{prompt}{response}', FULL._replace(response=None)),
      'no response to tell',
    ),
  ],
)
def test_what_cannot_be_told_is_refused(context, template, example, message):
  with pytest.raises(ValueError, match=message):
    getattr(contexts, context)(example, template=template)


def test_a_told_rule_reads_as_the_task_writes_it():
  # Kills: a self-teacher that meets other words than it was trained on.
  untold, told = (sources.shift(count=9, told=share) for share in (0.0, 1.0))
  for without, within in zip(untold, told, strict=True):
    template = '{answer} + {prompt}'
    assert contexts.with_answer(without, template=template) == within.messages


# Kills a suggestion that is right, one that changes from call to call, and one
# that is the same for all.
def test_a_suggestion_is_wrong_and_stays():
  turn = [{'role': 'user', 'content': '1 + 1?'}]
  told = lambda i: contexts.with_suggestion(
    Example(f'{i}', turn, '2'), template='{prompt} {suggestion}'
  )[-1]['content']
  said = [told(i) for i in range(50)]
  assert said == [told(i) for i in range(50)]
  assert {text.removeprefix('1 + 1? ') for text in said} == set('013456789')
  with pytest.raises(ValueError, match='nothing wrong to suggest'):
    contexts.with_suggestion(Example('a', turn, '2'), among=('2',))
