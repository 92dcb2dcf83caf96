"""Grading by hand; each sick pair has the finding of its mechanism."""

from functools import partial
import math

import numpy as np
import pytest
import scripted

from jopd import rewards
from jopd.data import sources
from jopd.data.batching import encode_batch, make_iterator
from jopd.data.contexts import with_system
from jopd.data.examples import Example
from jopd.data.prompts import encode_prompt
from jopd.doctor.examine import examine_stage
from jopd.doctor.stage import (
  Examination,
  GradedResponses,
  add_prefix,
  difference,
  grade,
  remaining_headroom,
)
from jopd.rollout.continuous_batching import LENGTH, STOP
from jopd.rollout.sampler import Rollout


def examined(learner, guide, context=None):
  """Check -> finding."""
  case = scripted.case(learner, guide, context)
  findings = examine_stage(
    case.config, case.stage, case.run, case.params, prompts=64
  )
  return {finding.check: finding for finding in findings}


def sick(found):
  return {f.check: f.status for f in found.values() if f.status != 'ok'}


def test_a_healthy_pair():
  found = examined(scripted.student, scripted.teacher)
  assert sick(found) == {}
  # The student is right with 0.95 or 0.3 at each of two digits.
  assert 0.4 < found['student'].number < 0.65
  assert found['headroom'].number == 1 - found['student'].number
  # The teacher ignores what the student has written.
  assert found['prefixes'].number == 1
  assert found['truncation'].number == 0
  assert found['equality'].number < 1e-5 < found['gradient'].number
  # A script is the same while it is sampled and while it is scored.
  assert found['sampler'].number < 1e-7 and found['repeatability'].number == 0


def test_a_stranger():
  # It solves everything, so accuracies alone would recommend it.
  found = examined(scripted.student, scripted.stranger)
  assert found['headroom'].status == 'ok' and found['student'].status == 'ok'
  assert found['agreement'].status == 'refuse'
  assert found['agreement'].mechanism.startswith('stranger teacher')
  assert 'config.models.teacher.path' in found['agreement'].fix
  # It agrees on one digit of five tokens, and on the end.
  assert found['agreement'].number == pytest.approx(0.4, abs=0.1)


def test_a_cold_student():
  found = examined(scripted.cold, scripted.teacher)
  assert found['student'].status == 'refuse'
  assert found['truncation'].number == 1
  # Kills: blaming the teacher for a student that says nothing.
  blamed = {found[check].mechanism for check in sick(found)}
  assert not any('stranger' in mechanism for mechanism in blamed)
  assert found['agreement'].mechanism == found['student'].mechanism
  assert found['student'].mechanism.startswith('cold student')
  assert "response_source='dataset'" in found['student'].fix


def test_a_teacher_that_follows_the_student():
  found = examined(scripted.student, scripted.gullible)
  # Two of five tokens tell it what to say; alone it is always right.
  assert sick(found) == {'prefixes': 'warn', 'overlap mass': 'warn'}
  assert found['prefixes'].mechanism.startswith('prefix distortion')
  assert found['prefixes'].number == pytest.approx(0, abs=0.15)
  assert found['headroom'].number > 0.3


def test_a_privilege_of_one_instance():
  answer = lambda example: with_system(example, prompt=example.answer)
  found = examined(scripted.obedient, scripted.obedient, answer)
  # It does earn more, so accuracies alone would recommend it.
  assert found['headroom'].status == 'ok'
  assert found['privilege'].status == 'refuse'
  # At two of five tokens 8 examples tell 8 of 10 digits apart at most, where
  # the student guesses among 10: no more than log 8 / log 10 = 0.90 is seen.
  assert 0.6 < found['privilege'].number < 0.9
  assert found['privilege'].mechanism.startswith('instance-specific privilege')
  assert 'config.distil.teacher_contexts.teacher' in found['privilege'].fix


def test_a_privilege_that_all_share():
  rule = partial(with_system, prompt='3')
  found = examined(scripted.obedient, scripted.obedient, rule)
  assert found['privilege'].status == 'ok'
  assert found['privilege'].number == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize('prompts, batch_size', [(20, 8), (1000, 8), (9, 150)])
def test_each_prompt_is_taken_once(prompts, batch_size):
  # Kills: a source that is smaller than asked for, or than its batches, and is
  # counted several times.
  case = scripted.case(scripted.student, scripted.teacher)
  batches = make_iterator(
    sources.running_sum(count=64, length=2),
    scripted.TOKENIZER,
    batch_size=batch_size,
    max_prompt_tokens=24,
  )
  stage = case.stage._replace(
    prompts=case.stage.prompts._replace(batches=batches)
  )
  taken = Examination(
    stage, case.run, case.params, prompts=prompts, support=None
  ).prompts
  count = min(prompts, 64)
  assert len(taken.ids) == len(set(taken.ids)) == count
  assert taken.prompt.shape == (count, 24)
  # Rows, names and examples are still of one another.
  for row, length, example in zip(
    taken.prompt, taken.prompt_length, taken.examples, strict=True
  ):
    asked = encode_prompt(scripted.TOKENIZER, example.messages)
    assert row[:length].tolist() == asked


# Grading


def graded(rewards, rows=((0, 0),), lengths=(2,)):
  return GradedResponses(
    np.array(rows),
    np.array(lengths),
    np.zeros(len(lengths), bool),
    np.array(rewards, float),
  )


def rollout(texts, ends):
  rows = [scripted.TOKENIZER.encode(text) for text in texts]
  response = np.zeros((len(rows), 6), np.int32)
  for out, row in zip(response, rows, strict=True):
    out[: len(row)] = row
  blank = dict.fromkeys(Rollout._fields)
  return Rollout(**blank)._replace(
    response=response,
    response_length=np.array([len(row) for row in rows], np.int32),
    end_reason=np.array(ends),
  )


def equals(response, example):
  right = float(response.text == example.answer)
  return rewards.Reward(math.nan if example.answer is None else right)


def asked(*answers):
  """Prompts with these answers."""
  turn = [{'role': 'user', 'content': '?'}]
  return encode_batch(
    [Example(str(i), turn, answer) for i, answer in enumerate(answers)],
    scripted.TOKENIZER,
    max_prompt_tokens=16,
  )


def test_what_is_graded():
  said = rollout(['1 2', '1 3', '1 2'], [STOP, STOP, LENGTH])
  prompts = asked('1 2', '1 2', None)
  found = grade(said, prompts, equals, scripted.TOKENIZER)
  np.testing.assert_array_equal(found.reward, [1, 0, math.nan])
  assert (found.num_correct, found.num_graded, found.accuracy) == (1, 2, 0.5)
  assert found.truncated.tolist() == [False, False, True]


def test_a_prefix_and_its_continuation_are_graded_as_one():
  # Kills: grading the continuation alone, which is what the teacher said.
  first = rollout(['1 2 3', '4 5'], [STOP, STOP])
  options = asked('1 2 6', '7'), equals, scripted.TOKENIZER
  given = grade(first, *options)
  prompt, length = np.array([[9, 9, 0], [9, 0, 0]], np.int32), np.array([2, 1])
  wide, lengths, kept = add_prefix(prompt, length, given, 0.7)
  # 0.7 of three tokens is two, of two is one.
  assert kept.tolist() == [2, 1] and lengths.tolist() == [4, 2]
  one, two, four = (scripted.TOKENIZER.encode(t)[0] for t in ('1', ' 2', '4'))
  assert wide.tolist() == [
    [9, 9, one, two, 0, 0, 0, 0, 0],
    [9, four, 0, 0, 0, 0, 0, 0, 0],
  ]
  more = rollout([' 6', '7'], [STOP, STOP])
  found = grade(more, *options, prefix=given, prefix_length=kept)
  assert found.reward.tolist() == [1, 0]
  assert found.response_length.tolist() == [3, 2]


def test_a_cut_never_keeps_the_stop_token():
  given = graded([1], rows=[[5, 6, 7, 2]], lengths=[4])
  prompt, length = np.array([[9]], np.int32), np.array([1])
  for share in (0.0, 0.25, 0.75, 0.99):
    _, _, kept = add_prefix(prompt, length, given, share)
    assert kept[0] == int(4 * share) < 4


def test_newcombes_difference():
  # Newcombe 1998, table II, case (b), method 10: 9/10 and 3/10 give
  # 0.6 with 0.1705 to 0.8090.
  of = lambda right, count: graded([1.0] * right + [0.0] * (count - right))
  found = difference(of(9, 10), of(3, 10))
  assert found == pytest.approx((0.6, 0.1705, 0.8090), abs=5e-4)
  assert all(map(math.isnan, difference(graded([math.nan]), of(1, 2))))


def test_without_headroom_nothing_of_it_remains():
  assert math.isnan(remaining_headroom(0.5, 0.5, 0.5))
  assert remaining_headroom(1.0, 0.25, 0.5) == -0.5
