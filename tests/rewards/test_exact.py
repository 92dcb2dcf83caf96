"""Exact-match rewards: what counts as the answer, and what as the same."""

import fractions
import time

import numpy as np
import pytest

from jopd import rewards
from jopd.data.examples import Example
from jopd.rewards import exact


def reward(function, text, answer, **settings):
  response, example = rewards.Response(text), Example('a', [], answer=answer)
  return function(response, example, **settings)


@pytest.mark.parametrize(
  'text, answer',
  [
    ('3 4 8 #### 8', '8'),
    ('#### 1 no, #### 2', '2'),  # kills: the first marker counts
    ('####7', '7'),
    ('####  New York. \nand more 9', 'New York'),
    ('#### 12;:,.', '12'),
    ('#### 5!', '5!'),
    ('#### 3\r\n', '3'),
    ('#### 3<|im_end|>\n<|im_start|>', '3'),
    ('#### 3</s>', '3'),
    ('the answer is 8', None),
    ('', None),
    ('8 ####', None),
    ('#### 8 ####', None),
    ('#### \n8', None),
    ('#### .', None),
  ],
)
def test_the_answer_is_the_line_after_the_last_marker(text, answer):
  assert exact.marked_answer(text) == answer


def test_the_marker_can_be_any_text():
  assert exact.marked_answer('x. Answer: 4.', marker='Answer:') == '4'
  with pytest.raises(ValueError, match='marker must be text'):
    exact.marked_answer('4', marker='')


@pytest.mark.parametrize(
  'text, answer',
  [
    (r'\boxed{4}', '4'),
    (r'\boxed{1} or \boxed{ 2 }.', '2'),
    (r'\boxed{\frac{1}{2}} }', r'\frac{1}{2}'),  # kills: up to the first '}'
    (r'\boxed{\{1, 2\}}', r'\{1, 2\}'),  # kills: counting escaped braces
    (r'\boxed{a \} b}', r'a \} b'),
    (r'\boxed{}', None),
    (r'\boxed{\frac{1}{2}', None),  # cut off by the length limit
    (r'\boxed 4', None),
    ('4', None),
  ],
)
def test_the_answer_is_in_the_last_closed_box(text, answer):
  assert exact.boxed_answer(text) == answer


@pytest.mark.parametrize(
  'said, answer, value',
  [
    ('#### 3', '3', 1.0),
    ('3', '3', 0.0),  # without the marker nothing counts
    ('#### 4', '3', 0.0),
    ('#### 31', '3', 0.0),  # kills: a prefix that is enough
    ('#### 1,234', '1234', 1.0),
    ('#### 12,34', '1234', 0.0),  # not groups of three
    ('#### 1,234,567.50', '1234567.5', 1.0),
    ('#### +7.', '7', 1.0),
    ('#### -7', '7', 0.0),
    ('#### −7', '-7', 1.0),  # noqa: RUF001  (a minus sign)
    ('#### 3.0', '3', 1.0),
    ('#### .5', '0.50', 1.0),
    ('#### 003', '3', 1.0),
    ('#### -0', '0', 1.0),
    ('#### 1e3', '1000', 0.0),  # nothing is evaluated
    ('#### 1/2', '0.5', 0.0),
    ('#### New   York', 'New York', 1.0),
    ('#### new york', 'New York', 0.0),
    ('#### .', '3', 0.0),
    ('#### 72', '48 / 2 = 24, and\n#### 72', 1.0),  # a GSM8K solution
    ('#### ٣', '3', 0.0),  # other digits are other text
  ],
)
def test_the_reward_is_one_for_the_same_answer_only(said, answer, value):
  assert reward(exact.exact_match, said, answer) == value


def test_boxes_are_compared_like_marked_answers():
  assert reward(exact.boxed_match, r'so \boxed{1,000}', '1000') == 1.0
  assert reward(exact.boxed_match, r'\boxed{2}', r'thus \boxed{2}.') == 1.0
  assert reward(exact.boxed_match, '#### 2', '2') == 0.0


def test_numbers_are_equal_exactly_when_their_values_are():
  # Against exact rational arithmetic, with digits far beyond a float's.
  # Kills: comparing as floats, or losing a sign or a zero that counts.
  noise = np.random.default_rng(0)

  def number():
    digits = ''.join(noise.choice(list('001'), size=noise.integers(1, 5)))
    place = noise.integers(0, len(digits) + 1)
    sign = noise.choice(['', '+', '-'])
    return f'{sign}{digits[:place]}.{digits[place:]}'.removesuffix('.')

  equal = 0
  for _ in range(4000):
    one, two = number(), number()
    tail = '0' * 20 + '1'
    if noise.integers(2):
      one, two = (x + tail if '.' in x else x for x in (one, two))
    same = fractions.Fraction(one) == fractions.Fraction(two)
    equal += same
    assert reward(exact.exact_match, f'#### {one}', two) == float(same), (
      one,
      two,
    )
  assert equal > 200


def test_an_empty_reference_is_refused():
  # Kills: a reward that is 0 for ever and looks like a weak student.
  for answer in ('', ' . ', 'solution without the number ####'):
    with pytest.raises(ValueError, match='reference answer is empty'):
      reward(exact.exact_match, '#### 3', answer)


def test_a_hostile_response_is_graded_at_once():
  # Kills: a pattern that backtracks; each of these is a second or more then.
  start = time.monotonic()
  for piece in ('#### ', r'\boxed{', '1,111', ' ', '{', '\\', '<', '.'):
    text = piece * 100_000
    reward(exact.exact_match, '#### ' + text + 'x', '3')
    reward(exact.boxed_match, r'\boxed{' + text, '3')
  assert time.monotonic() - start < 5


@pytest.mark.parametrize(
  'said, value',
  [
    (r'<think>\boxed{4}?</think>\boxed{5}', 1.0),
    (r'<think>\boxed{5}?</think>no', 0.0),  # kills: a box in the thoughts
    (r'<think>\boxed{5}, and then', 0.0),  # cut off while it was thinking
    (r'\boxed{5}, and then', 0.0),  # the same, '<think>' in the prompt
    (r'</think>\boxed{4}</think>\boxed{5}', 1.0),  # kills: the first mark
    (r'\boxed{5}</think>', 0.0),
  ],
)
def test_only_what_follows_the_thoughts_is_read(said, value):
  assert reward(exact.boxed_match, said, '5', after='</think>') == value


def test_every_reward_can_leave_the_thoughts_out():
  pytest.importorskip('math_verify')
  assert (
    reward(exact.exact_match, '#### 4</think>#### 5', '5', after='</think>')
    == 1.0
  )
  assert reward(exact.exact_match, '#### 5', '5', after='</think>') == 0.0
  for said, value in (
    (r'\boxed{1}</think>\boxed{2.0}', 1.0),
    (r'\boxed{2}', 0.0),
  ):
    found = reward(rewards.math_match, said, '2', after='</think>')
    assert found == value
