"""What a teacher is told of the responses; where there is no room for it."""

import numpy as np

from jopd.data import contexts
from jopd.data.batching import encode_batch
from jopd.data.examples import Example, ScoredResponse
from jopd.data.rollout_contexts import encode_rollout_contexts, reads_rollouts
from jopd.data.sources import shift
from jopd.data.tokenizer import builtin_tokenizer

EXAMPLE = Example('a', [{'role': 'user', 'content': '1 2'}], '3')
WRONG, RIGHT = ScoredResponse('7 #### 7', 0.0), ScoredResponse('9 #### 3', 1.0)
BRIEF = '{prompt} + {response}'


def content(messages):
  return messages and messages[-1]['content']


# Kills a teacher that is told the very response that it scores, or a wrong one.
def test_a_success_is_that_of_another():
  told = lambda own, others: content(
    contexts.with_success(EXAMPLE, own, others, template=BRIEF)
  )
  assert told(WRONG, [WRONG, RIGHT]) == '1 2 + 9 #### 3'
  assert told(RIGHT, [RIGHT._replace(text='5')]) == '1 2 + 5'
  assert told(RIGHT, [WRONG]) is None
  assert told(WRONG, [RIGHT._replace(reward=None)]) is None


def test_an_attempt_is_told_with_its_verdict():
  template = BRIEF + ' {feedback}'
  told = lambda own: content(
    contexts.with_attempt(EXAMPLE, own, [RIGHT], template=template)
  )
  assert told(WRONG) == '1 2 + 7 #### 7 wrong'
  assert told(RIGHT) == '1 2 + 9 #### 3 correct'
  assert told(WRONG._replace(reward=None)) is None


def test_which_contexts_are_told_is_in_their_signature():
  assert reads_rollouts(contexts.with_success)
  assert not reads_rollouts(contexts.with_answer)


# Rows: nothing to tell, told, too long to be told. Kills rows in another order,
# a prompt that is cut, and one that is told in half.
def test_where_nothing_fits_the_prompt_alone_is_read():
  tokenizer = builtin_tokenizer()
  examples = [EXAMPLE, EXAMPLE._replace(id='b')]
  prompts = encode_batch(examples, tokenizer, max_prompt_tokens=16)
  long = RIGHT._replace(text='1 ' * 40)
  told = lambda *args: contexts.with_success(*args, template=BRIEF)
  ids, length, was = encode_rollout_contexts(
    prompts,
    [[RIGHT, WRONG], [WRONG, long]],
    told,
    tokenizer=tokenizer,
    max_teacher_prompt_tokens=20,
  )
  assert was.tolist() == [False, True, False, False]
  own = prompts.prompt_length[0]
  assert length[[0, 2, 3]].tolist() == [own] * 3
  np.testing.assert_array_equal(ids[0, :own], prompts.prompt[0, :own])
  assert '1 2 + 9 #### 3' in tokenizer.decode(ids[1, : length[1]])
  assert ids.shape == (4, 20)


def test_a_worked_hint_is_the_response_itself():
  [example] = shift(count=1, told=1.0, hint='worked')
  prompt = example.messages[0]['content']
  assert prompt.startswith(f'{example.response} + ')
  assert shift(count=1)[0].response == example.response
