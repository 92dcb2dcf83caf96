"""What is graded, what is continued, and how sure a difference is."""

import math

import numpy as np
import pytest

from jopd.data.examples import Example
from jopd.data.tokenizer import builtin_tokenizer
from jopd.doctor.answers import Answers, cut, difference, graded, kept_headroom
from jopd.rollout.continuous_batching import LENGTH, STOP
from jopd.rollout.sampler import Rollout

TOKENIZER = builtin_tokenizer()


def answers(rewards, rows=((0, 0),), lengths=(2,)):
  return Answers(
    np.array(rows),
    np.array(lengths),
    np.zeros(len(lengths), bool),
    np.array(rewards, float),
  )


def rollout(texts, ends):
  rows = [TOKENIZER.encode(text) for text in texts]
  response = np.zeros((len(rows), 6), np.int32)
  for out, row in zip(response, rows, strict=True):
    out[: len(row)] = row
  blank = dict.fromkeys(Rollout._fields)
  return Rollout(**blank)._replace(
    response=response,
    response_length=np.array([len(row) for row in rows], np.int32),
    end=np.array(ends),
  )


def grade(text, example):
  return float(text == example.answer)


def test_what_is_graded():
  examples = [
    Example('a', [], answer='1 2'),
    Example('b', [], answer='1 2'),
    Example('c', []),
  ]
  found = graded(
    rollout(['1 2', '1 3', '1 2'], [STOP, STOP, LENGTH]),
    *(examples, grade, TOKENIZER),
  )
  np.testing.assert_array_equal(found.reward, [1, 0, math.nan])
  assert (found.right, found.graded, found.accuracy) == (1, 2, 0.5)
  assert found.truncated.tolist() == [False, False, True]


def test_a_prefix_and_its_continuation_are_graded_as_one():
  # Kills: grading the continuation alone, which is what the teacher said.
  first = rollout(['1 2 3', '4 5'], [STOP, STOP])
  examples = [Example('a', [], answer='1 2 6'), Example('b', [], answer='7')]
  given = graded(first, examples, grade, TOKENIZER)
  prompt, length = np.array([[9, 9, 0], [9, 0, 0]], np.int32), np.array([2, 1])
  wide, lengths, kept = cut(prompt, length, given, 0.7)
  # 0.7 of three tokens is two, of two is one.
  assert kept.tolist() == [2, 1] and lengths.tolist() == [4, 2]
  one, two, four = (TOKENIZER.encode(t)[0] for t in ('1', ' 2', '4'))
  assert wide.tolist() == [
    [9, 9, one, two, 0, 0, 0, 0, 0],
    [9, four, 0, 0, 0, 0, 0, 0, 0],
  ]
  more = rollout([' 6', '7'], [STOP, STOP])
  found = graded(
    *(more, examples, grade, TOKENIZER), prefix=given, prefix_length=kept
  )
  assert found.reward.tolist() == [1, 0]
  assert found.response_length.tolist() == [3, 2]


def test_a_cut_never_keeps_the_stop_token():
  given = answers([1], rows=[[5, 6, 7, 2]], lengths=[4])
  prompt, length = np.array([[9]], np.int32), np.array([1])
  for share in (0.0, 0.25, 0.75, 0.99):
    _, _, kept = cut(prompt, length, given, share)
    assert kept[0] == int(4 * share) < 4


def test_newcombes_difference():
  # Newcombe 1998, table II, case (b), method 10: 9/10 and 3/10 give
  # 0.6 with 0.1705 to 0.8090.
  of = lambda right, count: answers([1.0] * right + [0.0] * (count - right))
  found = difference(of(9, 10), of(3, 10))
  assert found == pytest.approx((0.6, 0.1705, 0.8090), abs=5e-4)
  assert all(map(math.isnan, difference(answers([math.nan]), of(1, 2))))


def test_without_headroom_nothing_is_kept_of_it():
  assert math.isnan(kept_headroom(0.5, 0.5, 0.5))
  assert kept_headroom(1.0, 0.25, 0.5) == -0.5
