"""Each sick pair is named by its own mechanism, and a healthy one by none."""

from functools import partial

import pytest
import scripted
import tiny

from jopd.data.contexts import with_system
from jopd.data.tokenizer import builtin_tokenizer
from jopd.doctor.examine import examine, examine_data, examine_stage


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
  assert sick(found) == {'prefixes': 'warn'}
  assert found['prefixes'].mechanism.startswith('prefix distortion')
  assert found['prefixes'].number == pytest.approx(0, abs=0.15)
  assert found['headroom'].number > 0.3


def test_a_privilege_of_one_instance():
  answer = lambda example: with_system(example, prompt=example.answer)
  found = examined(scripted.obedient, scripted.obedient, answer)
  # It does earn more, so accuracies alone would recommend it.
  assert found['headroom'].status == 'ok'
  assert found['privilege'].status == 'refuse'
  assert found['privilege'].mechanism.startswith('instance-specific privilege')
  assert 'config.distil.contexts.teacher' in found['privilege'].fix


def test_a_privilege_that_all_share():
  rule = partial(with_system, prompt='3')
  found = examined(scripted.obedient, scripted.obedient, rule)
  assert found['privilege'].status == 'ok'
  assert found['privilege'].number == 0


def test_rows_of_a_stage():
  case = scripted.case(scripted.student, scripted.teacher)
  config = case.config.copy_and_resolve_references()
  config.max_prompt_tokens = 9
  findings = examine_data(config, case.stage, case.run)
  dropped, answers = findings
  assert (dropped.number, dropped.status) == (1, 'refuse')
  assert dropped.fix == 'config.max_prompt_tokens = 10'
  assert (answers.number, answers.status) == (0, 'ok')
  (_, demonstrations) = examine_data(
    config, case.stage._replace(source='dataset'), case.run
  )
  assert (demonstrations.check, demonstrations.status) == (
    'demonstrations',
    'ok',
  )


def test_what_a_stage_to_come_will_make_is_not_judged():
  # Kills: a verdict on random weights that the stage will never see.
  config = tiny.get_config()
  findings = examine(config, say=lambda line: None)
  (late,) = (f for f in findings if f.status != 'ok')
  assert (late.stage, late.check) == ('distil', 'not trained yet')
  assert "--config.stages=('warm',)" in late.fix


def test_stops_that_differ_are_refused_before_weights_load(tmp_path):
  other = builtin_tokenizer()
  other.eos_token = '<|endoftext|>'
  config = tiny.get_config()
  config.models.student = dict(path=tiny.save_model(tmp_path / 'student'))
  config.models.teacher = dict(
    path=tiny.save_model(tmp_path / 'teacher', tokenizer=other)
  )
  for name in ('student', 'teacher'):  # nothing is left to load
    (tmp_path / name / 'model.safetensors').unlink()
  findings = examine(config)
  found = {f.check: f for f in findings}
  assert found['stop tokens'].status == 'refuse'
  assert found['stop tokens'].mechanism.startswith('stop mismatch')


def test_no_prompts():
  with pytest.raises(ValueError, match='prompts must be at least 1, got 0'):
    examine(tiny.get_config(), prompts=0)
