"""What a reward function may return, and what becomes of it."""

import math

import pytest

from jopd import rewards
from jopd.data.examples import Example

EXAMPLE = Example('a', [], columns={'level': 3})


def grade(result):
  return rewards.grade(
    lambda response, example: result, rewards.Response('4'), EXAMPLE
  )


def test_numbers_and_named_parts():
  assert grade(True) == rewards.Reward(1.0)
  # Kills: the mean of the parts, and parts that are lost.
  assert grade({'right': 1, 'short': -0.25}) == rewards.Reward(
    0.75, {'right': 1.0, 'short': -0.25}
  )


def test_a_reward_function_reads_the_whole_response_and_row():
  def reward(response, example):
    assert response.prompt[0]['content'] == '2 + 2?'
    return len(response.ids) + example.columns['level']

  asked = [{'role': 'user', 'content': '2 + 2?'}]
  response = rewards.Response('4', [5, 2], asked, 'length')
  assert rewards.grade(reward, response, EXAMPLE).value == 5.0


def test_what_has_no_reference_and_what_has_no_verdict_are_two_things():
  # Kills: a wrong answer made of an example that cannot be graded.
  assert math.isnan(grade(None).value) and grade(None).judged
  for function in (rewards.exact_match, rewards.boxed_match):
    assert function(rewards.Response('#### 4'), EXAMPLE) is None

  def late(response, example):
    raise rewards.NoVerdictError

  assert rewards.grade(late, rewards.Response(''), EXAMPLE) == rewards.Reward(
    0.0, judged=False
  )


@pytest.mark.parametrize(
  'result', [math.nan, math.inf, {'a': 1, 'b': math.nan}]
)
def test_a_reward_that_is_no_number_names_the_example(result):
  with pytest.raises(ValueError, match=r'example a is .*return finite'):
    grade(result)
