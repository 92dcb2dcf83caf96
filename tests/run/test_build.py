"""A config becomes a run, and everything wrong with it is said before that."""

import json

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import pytest
import tiny

from jopd.data.tokenizer import builtin_tokenizer, train_tokenizer
from jopd.models import hf
from jopd.run import build


@pytest.fixture
def config():
  return tiny.get_config()


@pytest.fixture
def unloaded(monkeypatch):
  """Fails a test that loads or makes a weight."""
  monkeypatch.setattr(build, '_params', lambda *_: pytest.fail('loaded'))


def refused(config):
  with pytest.raises((ValueError, FileNotFoundError)) as error:
    build.build(config)
  assert '\n' not in str(error.value)
  return str(error.value)


def stop_ids(built):
  return {*built.run.stops.ids.tolist()} - {-1}


def test_a_config_becomes_a_run(config):
  config.distil.loss.match.coef = 0.5
  config.distil.group_size = 2
  built = build.build(config)
  assert [stage.name for stage in built.stages] == ['warm', 'distil']
  warm, distil = built.stages
  assert warm.rollouts.sources == {'dataset': 1} and warm.teachers.models == {}
  assert distil.teachers.models == {'teacher': 'teacher'}
  assert distil.rollouts.group_size == 2
  assert distil.loss.terms({})['match'].coef == 0.5
  # Demonstrations are only encoded where they are learnt.
  assert next(warm.prompts.batches).response.shape == (8, 16)
  assert next(distil.prompts.batches).response.shape == (8, 0)
  assert stop_ids(built) == {builtin_tokenizer().eos_token_id}
  assert built.run.mesh.shape['data'] == jax.device_count()


def test_seeds_and_names_give_weights(config):
  # Kills: one key for all models, so that the student starts as the teacher.
  first = build.build(config).params
  again = build.build(config).params
  jax.tree.map(np.testing.assert_array_equal, first, again)
  student, teacher = (first[n]['embed'] for n in ('student', 'teacher'))
  assert np.any(np.asarray(student) != np.asarray(teacher))


def test_a_folder_is_loaded_with_its_dtype_and_logged(config, tmp_path, caplog):
  caplog.set_level('INFO')
  folder = tiny.save_model(tmp_path / 'm', dtype=jnp.bfloat16)
  config.models.student = ConfigDict({'path': folder})
  params = build.build(config).params
  assert f'loading student from {folder}' in caplog.messages
  dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(params['student'])}
  assert dtypes == {'bfloat16'}


def test_the_fingerprint_is_what_a_file_gives_back(config):
  # Kills: a tuple, which JSON gives back as a list, so that no run resumes.
  config.models.student.layer_types = ('full_attention',)
  fingerprint = build.build(config).stages[1].fingerprint
  assert fingerprint == json.loads(json.dumps(fingerprint))
  assert fingerprint['optimizer']['name'] == 'adamw'


def test_the_end_of_a_turn_is_a_stop(config, tmp_path, monkeypatch):
  # A base model states another stop than its chat template writes. Kills: a
  # student that learns to end its turn while the sampler waits for the other.
  monkeypatch.setattr(build, '_params', lambda *_: {})
  tokenizer = builtin_tokenizer()
  tokenizer.eos_token = '<|endoftext|>'
  folder = tiny.save_model(tmp_path / 'base', tokenizer=tokenizer)
  assert hf.stop_ids(folder, hf.load_tokenizer(folder)) == (0,)
  config.models = ConfigDict({'student': {'path': folder}})
  config.stages = ('warm',)
  assert stop_ids(build.build(config)) == {0, 2}


def test_imitation_of_other_tokens_than_the_chat_is_logged(
  config, tmp_path, monkeypatch, caplog
):
  caplog.set_level('INFO')
  # Kills: training in silence on text that the chat template would have
  # wrapped, as those of thinking models do.
  monkeypatch.setattr(build, '_params', lambda *_: {})
  tokenizer = builtin_tokenizer()
  build.build(config)
  assert not [x for x in caplog.messages if x.startswith('note:')]
  tokenizer.chat_template = tokenizer.chat_template.replace(
    '{% generation %}{{ message', "{% generation %}{{ 'Hm. ' + message"
  )
  folder = tiny.save_model(tmp_path / 'thinks', tokenizer=tokenizer)
  config.models = ConfigDict({'student': {'path': folder}})
  config.stages = ('warm',)
  build.build(config)
  assert 'not the chat that the template renders' in caplog.text


@pytest.mark.usefixtures('unloaded')
class TestModels:
  """What is wrong with models, tokenizers and mesh, found before weights."""

  def pair(self, config, tmp_path, **teacher):
    student = tiny.save_model(tmp_path / 'student')
    teacher = tiny.save_model(tmp_path / 'teacher', **teacher)
    config.models = ConfigDict(
      {'student': {'path': student}, 'teacher': {'path': teacher}}
    )
    return config

  def test_a_teacher_with_another_tokenizer(self, config, tmp_path):
    other = train_tokenizer(['a b c'] * 9, vocab_size=300)
    message = refused(self.pair(config, tmp_path, tokenizer=other))
    assert "tokenizer of model 'teacher'" in message
    assert 'must share every token id' in message

  def test_another_tokenizer_than_the_one_that_is_set(self, config, tmp_path):
    # Kills: believing config.tokenizer without a look at the folders.
    other = train_tokenizer(['a b c'] * 9, vocab_size=300)
    folder = tiny.save_model(tmp_path / 'm', tokenizer=other)
    config.models.student = ConfigDict({'path': folder})
    config.tokenizer = 'builtin'
    assert "model 'student'" in refused(config)

  def test_a_damaged_second_model(self, config, tmp_path):
    # Kills: a cut file that is found once the first model has been loaded.
    self.pair(config, tmp_path)
    path = tmp_path / 'teacher' / 'model.safetensors'
    path.write_bytes(path.read_bytes()[:-5])
    message = refused(config)
    assert message.startswith(f'config.models.teacher: {path} is not a valid')

  def test_a_name_that_the_hub_does_not_give(self, config):
    config.models.student = ConfigDict({'path': 'owner/missing'})
    assert 'owner/missing is not a local folder' in refused(config)
    config.models.student = ConfigDict({'path': '.', 'revision': 'v1'})
    assert "revision is 'v1', but . is a local" in refused(config)

  def test_disjoint_stops(self, config, tmp_path):
    other = builtin_tokenizer()
    other.eos_token = '<|endoftext|>'
    message = refused(self.pair(config, tmp_path, tokenizer=other))
    assert 'stops at [0]' in message and 'at [2]' in message
    assert 'never learn to stop' in message

  def test_no_chat_template(self, config, tmp_path):
    bare = builtin_tokenizer()
    bare.chat_template = None
    folder = tiny.save_model(tmp_path / 'm', tokenizer=bare)
    config.models.student = ConfigDict({'path': folder})
    assert (
      f'tokenizer {folder}, chat_template_kwargs: the tokenizer has no chat'
      in refused(config)
    )

  def test_slots_that_the_mesh_cannot_divide(self, config):
    # Kills: finding out once the weights are there. 0 is all of the rows.
    config.distil.max_num_seqs = 12
    assert refused(config).startswith(
      'config.distil: max_num_seqs must be a multiple of the 8 parts'
    )

  def test_too_few_embeddings(self, config):
    config.models.student.vocab_size = 383
    message = refused(config)
    assert message.startswith('config.models.student: its vocabulary of 383')

  def test_texts_longer_than_the_positions(self, config):
    # Kills: angles that the weights have never seen, found by nobody; a limit
    # that is itself refused; a teacher that reads more than the student.
    config.models.teacher.max_position_embeddings = 31
    assert refused(config) == (
      'config.models.teacher: max_prompt_tokens = 16 and max_response_tokens ='
      ' 16 make 32 tokens, more than its max_position_embeddings = 31: lower'
      ' one of them'
    )
    config.models.teacher.max_position_embeddings = 32
    config.stages = ('distil',)
    config.distil.teacher_contexts = ConfigDict({'teacher': 'with_answer'})
    config.distil.max_teacher_prompt_tokens = 17
    message = refused(config)
    assert message.startswith(
      'config.distil: teacher_contexts.teacher: max_teacher_prompt_tokens = 17'
    )
    assert 'make 33 tokens' in message

  def test_a_field_that_is_not_implemented(self, config):
    config.models.student.hidden_act = 'gelu'
    message = refused(config)
    assert message.startswith('config.models.student: ')
    assert 'hidden_act' in message


@pytest.mark.usefixtures('unloaded')
class TestData:
  """What is wrong with data, found before weights load."""

  def rows(self, tmp_path, *rows):
    path = tmp_path / 'rows.jsonl'
    path.write_text('\n'.join(rows))
    return ConfigDict(dict(name='jsonl', path=str(path)))

  def test_eval_rows_need_an_answer(self, config, tmp_path):
    # Kills: a TypeError in the grader after the first evaluation.
    config.eval_data = self.rows(tmp_path, '{"prompt": "1 2"}')
    message = refused(config)
    assert message.startswith(f'config.eval_data: {tmp_path}/rows.jsonl: 1 of')
    assert 'row 1: example rows.jsonl:1: no answer' in message

  def test_a_reference_that_nothing_matches(self, config, tmp_path):
    config.data = self.rows(tmp_path, '{"prompt": "1 2", "answer": "####"}')
    config.stages = ('distil',)
    message = refused(config)
    assert message.startswith('config.distil: data: ')
    assert 'row 1: example rows.jsonl:1: the reference answer is' in message

  def test_imitation_needs_responses(self, config, tmp_path):
    config.data = self.rows(tmp_path, '{"prompt": "1 2", "answer": 3}')
    message = refused(config)
    assert message.startswith('config.warm: data: ')
    assert (
      'row 1: example rows.jsonl:1: the stage learns the responses' in message
    )

  def test_a_teacher_that_cannot_be_told_the_answer(self, config, tmp_path):
    # Kills: a run that stops at the step that first draws such a row.
    rows = '{"prompt": "1 2", "answer": 3}', '{"prompt": "2 2"}'
    config.data = self.rows(tmp_path, *rows)
    config.stages = ('distil',)
    config.distil.teacher_contexts = ConfigDict({'teacher': 'with_answer'})
    config.distil.max_teacher_prompt_tokens = 64
    message = refused(config)
    assert message.startswith('config.distil: data: ')
    assert 'rows.jsonl:2: teacher_contexts.teacher: ' in message

  def test_a_context_that_is_too_long_is_left_out(self, config, tmp_path):
    # Kills: a run that stops, at the step that first draws such a row.
    rows = ['{"prompt": "1 2", "answer": 3}'] * 8
    rows.append('{"prompt": "1 2 3 4 5 6", "answer": 3}')
    config.data = self.rows(tmp_path, *rows)
    config.stages = ('distil',)
    config.distil.teacher_contexts = ConfigDict({'teacher': 'same'})
    config.distil.max_teacher_prompt_tokens = 10
    left_out = tmp_path / 'new' / 'rows.jsonl'
    _, [stage] = build._prepare(config, None, left_out)
    assert 'rows.jsonl:9' not in next(stage.prompts.batches).ids
    [row] = [json.loads(line) for line in left_out.read_text().splitlines()]
    assert (row['row'], row['bad']) == (9, False)
    assert 'teacher_contexts.teacher: 14 tokens, more than' in row['reason']

  def test_a_prompt_beyond_the_limit_of_eval(self, config):
    config.max_prompt_tokens = 5
    message = refused(config)
    assert message.startswith('config.eval_data: 8 of 8 examples do not fit')


def test_every_model_reads_what_the_context_makes(config, monkeypatch):
  # Kills: a template that the rollouts see and the evaluation does not, or
  # that a teacher without a context of its own reads in other words.
  config.context = dict(name='with_template', template='Add up: {prompt}')
  config.max_prompt_tokens = 24
  evaluated = []
  monkeypatch.setattr(
    build, '_evaluator', lambda config, run, prompts: evaluated.append(prompts)
  )
  run, stages, _ = build.build(config)
  batches = [*evaluated, *(next(stage.prompts.batches) for stage in stages)]
  assert len(batches) == 3 and not stages[-1].teachers.contexts
  for batch in batches:
    row = batch.prompt[0, : batch.prompt_length[0]]
    content = batch.examples[0].messages[0]['content']
    assert f'Add up: {content}<|im_end|>' in run.tokenizer.decode(row)


def test_prompts_without_answers_can_be_learnt_from(config, tmp_path):
  # Kills: asking every row for a reference, which distillation does not need.
  path = tmp_path / 'rows.jsonl'
  path.write_text('{"prompt": "1 2"}')
  config.data = ConfigDict(dict(name='jsonl', path=str(path)))
  config.stages = ('distil',)
  _, [stage], _ = build.build(config)
  assert next(stage.prompts.batches).examples[0].answer is None


def test_an_evaluation_ignores_models_and_stages_of_the_config(
  config, tmp_path
):
  # Kills: checking that the config's own models exist.
  folder = tiny.save_model(tmp_path / 'm')
  config.models = ConfigDict({'student': {'path': 'nowhere'}})
  config.stages = ('missing',)
  config.tokenizer = 'nowhere'
  assert callable(build.build_evaluation(config, folder))
  # The config that was handed in is left as it was.
  assert config.models.student.path == 'nowhere'
