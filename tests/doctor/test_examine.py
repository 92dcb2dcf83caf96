"""The findings of a config, of its rows and of its models' tokenizers."""

import json

from ml_collections import ConfigDict
import pytest
import scripted
import tiny

from jopd.data.tokenizer import builtin_tokenizer, train_tokenizer
from jopd.doctor.examine import (
  check_gradients,
  compare_tokenizers,
  examine,
  examine_data,
)


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
    config,
    case.stage._replace(
      rollouts=case.stage.rollouts._replace(sources={'dataset': 1})
    ),
    case.run,
  )
  assert (demonstrations.check, demonstrations.status) == (
    'demonstrations',
    'ok',
  )


def test_the_gradients_of_every_term_are_checked():
  # Kills: a loss of jopd's that moves a student which equals its teacher, and
  # a check that ends with the first term.
  case = scripted.case(scripted.student, scripted.teacher)
  config = case.config.copy_and_resolve_references()
  biased = dict(name='top_k', k=2, of='target', tail='drop')
  config.distil.loss.biased = config.distil.loss.match.to_dict() | dict(
    support=biased
  )
  findings = check_gradients(config, case.stage, case.run)
  assert [f.status for f in findings] == ['refuse', 'ok']  # by name
  assert findings[0].fix.startswith('config.distil.loss.biased: ')
  assert 'support' in findings[0].fix


def test_what_a_stage_to_come_will_make_is_not_judged():
  # Kills: a verdict on random weights that the stage will never see.
  config = tiny.get_config()
  findings = examine(config)
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


# Folders whose models cannot, or should not, be teacher and student.


def save(folder, tokenizer=None, **generation):
  """A folder with a tokenizer and no weights; returns it as text."""
  (tokenizer or builtin_tokenizer()).save_pretrained(folder)
  if generation:
    (folder / 'generation_config.json').write_text(json.dumps(generation))
  return str(folder)


@pytest.fixture
def compared(tmp_path):
  """Check -> finding of a folder against one of the builtin tokenizer."""

  def compared(tokenizer=None, template_kwargs=None, **generation):
    folders = {
      'student': save(tmp_path / 'student'),
      'teacher': save(tmp_path / 'teacher', tokenizer, **generation),
    }
    findings = compare_tokenizers(folders, template_kwargs=template_kwargs)
    return {finding.check: finding for finding in findings}

  return compared


def sick(found):
  return {f.check: f.status for f in found.values() if f.status != 'ok'}


def test_the_same_files_agree(compared):
  found = compared()
  assert sick(found) == {}
  assert [f.number for f in found.values()] == [0, 0, 0, 0]


def test_other_ids(compared):
  other = train_tokenizer(['a b c d'] * 9, vocab_size=300)
  found = compared(other)
  assert found['tokenizer'].status == 'refuse'
  assert found['tokenizer'].number >= 384 - 300
  assert 'config.models.teacher.path' in found['tokenizer'].fix


def test_no_stop_in_common(compared):
  other = builtin_tokenizer()
  other.eos_token = '<|endoftext|>'
  found = compared(other)
  assert found['stop tokens'].status == 'refuse'
  assert found['stop tokens'].meaning.endswith('[0], [2]')
  assert 'generation_config.json of teacher' in found['stop tokens'].fix


def test_one_stop_in_common(compared):
  # A base model and its chat model: what the one adds is not shared.
  found = compared(eos_token_id=[0, 2])
  assert sick(found) == {'stop tokens': 'warn'}
  assert found['stop tokens'].number == 0.5


def test_a_mark_that_is_special_to_one(compared):
  other = builtin_tokenizer()
  other.add_special_tokens({'additional_special_tokens': ['<|im_start|>', '#']})
  assert 'special tokens' in sick(compared(other))


@pytest.mark.parametrize('change', ['/no_think', '<think>\n\n</think>\n\n'])
def test_templates_that_render_otherwise(compared, change):
  other = builtin_tokenizer()
  other.chat_template += "{{ '" + change + "' }}"
  found = compared(other)
  assert sick(found) == {'chat template': 'warn'}
  assert found['chat template'].number == 2
  assert 'thinking mode' in found['chat template'].meaning


def test_a_template_that_one_lacks(compared):
  other = builtin_tokenizer()
  other.chat_template = None
  assert sick(compared(other)) == {'chat template': 'warn'}


def test_a_variable_that_one_does_not_know(compared):
  # Kills: a thinking mode that is switched off for one of the two only.
  other = builtin_tokenizer()
  other.chat_template += (
    '{% if enable_thinking is defined and not enable_thinking %}'
    '<think></think>{% endif %}'
  )
  assert sick(compared(other)) == {}
  found = compared(other, template_kwargs={'enable_thinking': False})
  assert sick(found) == {'chat template': 'warn'}
