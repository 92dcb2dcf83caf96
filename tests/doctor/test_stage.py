"""Each sick pair is named by its own mechanism, and a healthy one by none."""

from functools import partial

import pytest
import scripted

from jopd.data import sources
from jopd.data.batching import make_iterator
from jopd.data.contexts import with_system
from jopd.data.prompts import encode_prompt
from jopd.doctor.examine import examine_stage
from jopd.doctor.stage import Examination


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
  # The teacher does not mind what the student has said.
  assert found['prefixes'].number == 1
  assert found['truncation'].number == 0
  assert found['rest'].number < 1e-5 < found['signal'].number
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
  assert "source='dataset'" in found['student'].fix


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
    **dict(batch_size=batch_size, max_prompt_tokens=24),
  )
  taken = Examination(
    *(case.stage._replace(batches=batches), case.run, case.params),
    **dict(prompts=prompts, support=None),
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
