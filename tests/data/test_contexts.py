"""Contexts: what a model reads before the response."""

import doctest
import functools

import numpy as np
import pytest

from jopd.data import batching, contexts, sources
from jopd.data.examples import Example, ScoredResponse
from jopd.data.tokenizer import builtin_tokenizer


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


def test_doctests_pass():
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


def test_only_the_last_turn_is_put_into_the_template():
  # Kills: fields that are filled one after the other, so that a prompt which
  # spells '{answer}' is filled too; str.format, which fails at '\boxed{}';
  # another turn that is touched; a group reference in the text put in.
  turns = contexts.with_answer(FULL, template=r'{prompt} \boxed{} {answer}')
  assert turns[:-1] == FULL.messages[:-1]
  assert turns[-1] == {
    'role': 'user',
    'content': r'What is {answer}? \boxed{} {prompt}',
  }
  shown = contexts.with_solution(FULL, template='{response} {prompt} {answer}')
  assert shown[-1]['content'] == r'\boxed{7} What is {answer}? {answer}'


def test_the_default_templates_have_their_fields():
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
      'example a has no answer; .*answer_field',
    ),
    (
      *('with_solution', '{prompt}{response}', FULL._replace(response=None)),
      'example a has no response',
    ),
  ],
)
def test_a_missing_field_is_refused(context, template, example, message):
  with pytest.raises(ValueError, match=message):
    getattr(contexts, context)(example, template=template)


def test_a_context_writes_a_hint_as_the_task_does():
  # Kills: a self-teacher that reads other words than it was trained on.
  without, hinted = (
    sources.shift(count=9, hint_fraction=fraction) for fraction in (0.0, 1.0)
  )
  for example, target in zip(without, hinted, strict=True):
    template = '{answer} + {prompt}'
    assert contexts.with_answer(example, template=template) == target.messages


# Kills a suggestion that is right, one that changes from call to call, and one
# that is the same for all.
def test_a_suggestion_is_wrong_and_stays():
  turn = [{'role': 'user', 'content': '1 + 1?'}]
  suggest = lambda i: contexts.with_suggestion(
    Example(f'{i}', turn, '2'), template='{prompt} {suggestion}'
  )[-1]['content']
  texts = [suggest(i) for i in range(50)]
  assert texts == [suggest(i) for i in range(50)]
  assert {text.removeprefix('1 + 1? ') for text in texts} == set('013456789')
  with pytest.raises(ValueError, match='nothing wrong to suggest'):
    contexts.with_suggestion(Example('a', turn, '2'), among=('2',))


# Rollout contexts

PROMPT = Example('a', [{'role': 'user', 'content': '1 2'}], '3')
WRONG, RIGHT = ScoredResponse('7 #### 7', 0.0), ScoredResponse('9 #### 3', 1.0)
BRIEF = '{prompt} + {response}'


# Kills a teacher that reads the very response that it scores, or a wrong one.
def test_a_success_is_that_of_another_response():
  def read(response, others):
    turns = contexts.with_success(PROMPT, response, others, template=BRIEF)
    return turns and turns[-1]['content']

  assert read(WRONG, [WRONG, RIGHT]) == '1 2 + 9 #### 3'
  assert read(RIGHT, [RIGHT._replace(text='5')]) == '1 2 + 5'
  assert read(RIGHT, [WRONG]) is None
  assert read(WRONG, [RIGHT._replace(reward=None)]) is None


def test_an_attempt_is_shown_with_its_verdict():
  def read(response):
    template = BRIEF + ' {feedback}'
    turns = contexts.with_attempt(PROMPT, response, [RIGHT], template=template)
    return turns and turns[-1]['content']

  assert read(WRONG) == '1 2 + 7 #### 7 wrong'
  assert read(RIGHT) == '1 2 + 9 #### 3 correct'
  assert read(WRONG._replace(reward=None)) is None


def test_rollout_contexts_are_declared():
  # Kills: a parameter whose name decides, settings that hide the mark.
  bound = functools.partial(contexts.with_success, template=BRIEF)
  assert contexts.reads_rollouts(contexts.with_success)
  assert contexts.reads_rollouts(functools.partial(bound, min_reward=0.5))
  assert not contexts.reads_rollouts(contexts.with_answer)
  assert not contexts.reads_rollouts(lambda example, own: None)


# Rows: without, with, and with too long a context. Kills another order of rows,
# a prompt that is cut, and one with half a context.
def test_a_context_that_does_not_fit_leaves_the_prompt_alone():
  tokenizer = builtin_tokenizer()
  examples = [PROMPT, PROMPT._replace(id='b')]
  prompts = batching.encode_batch(examples, tokenizer, max_prompt_tokens=16)
  long = RIGHT._replace(text='1 ' * 40)
  ids, length, has_context = batching.encode_rollout_contexts(
    prompts,
    [[RIGHT, WRONG], [WRONG, long]],
    functools.partial(contexts.with_success, template=BRIEF),
    tokenizer=tokenizer,
    max_teacher_prompt_tokens=20,
  )
  assert has_context.tolist() == [False, True, False, False]
  plain = prompts.prompt_length[0]
  assert length[[0, 2, 3]].tolist() == [plain] * 3
  np.testing.assert_array_equal(ids[0, :plain], prompts.prompt[0, :plain])
  assert '1 2 + 9 #### 3' in tokenizer.decode(ids[1, : length[1]])
  assert ids.shape == (4, 20)
