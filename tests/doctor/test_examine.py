"""From a config to the findings of all its stages."""

from ml_collections import ConfigDict
import pytest
import scripted
import tiny

from jopd.data.tokenizer import builtin_tokenizer
from jopd.doctor.examine import examine, examine_data


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
    config, case.stage._replace(sources={'dataset': 1}), case.run
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
  for name, tokenizer in (('student', builtin_tokenizer()), ('teacher', other)):
    tokenizer.save_pretrained(tmp_path / name)  # and nothing to load
    config.models[name] = ConfigDict({'path': str(tmp_path / name)})
  findings = examine(config)
  found = {f.check: f for f in findings}
  assert found['stop tokens'].status == 'refuse'
  assert found['stop tokens'].mechanism.startswith('stop mismatch')


def test_no_prompts():
  with pytest.raises(ValueError, match='prompts must be at least 1, got 0'):
    examine(tiny.get_config(), prompts=0)
