"""The commands from end to end, on models that know nothing."""

import contextlib
import io
import json
import pathlib
import shutil

import pytest
import tiny

from jopd import commands, main
from jopd.data import sources
from jopd.data.tokenizer import builtin_tokenizer

TINY = f'--config={tiny.__file__}'


def jopd(*argv):
  """Exit code, standard output, standard error."""
  out, err = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    with pytest.raises(SystemExit) as exit:
      main.run([str(argument) for argument in argv])
  return exit.value.code, out.getvalue(), err.getvalue()


def refused(*argv):
  """The one line with which the command refuses, whose code is 2."""
  code, out, err = jopd(*argv)
  assert (code, out) == (2, '') and len(err.splitlines()) == 1, err
  return err.removeprefix(f'jopd {argv[0]}: ').rstrip('\n')


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  return tmp_path_factory.mktemp('runs') / 'tiny'


@pytest.fixture(scope='module')
def trained(workdir, tmp_path_factory):
  """A run of one step on ten rows, one of them too long and one damaged."""
  folder = tmp_path_factory.mktemp('data')
  rows = [
    {'prompt': e.messages[-1]['content'], 'response': e.response}
    for e in sources.running_sum(count=8)
  ]
  lines = [json.dumps(row) for row in rows]
  lines += [json.dumps({'prompt': '1 ' * 40, 'response': '1'}), '{"prompt": 3}']
  (folder / 'rows.jsonl').write_text('\n'.join(lines))
  config = folder / 'rows.py'
  config.write_text(f"""
import tiny

def get_config():
  config = tiny.get_config()
  config.stages = ('warm',)
  config.warm.data = dict(
    name='jsonl', path={str(folder / 'rows.jsonl')!r}, max_bad_share=0.2,
    quarantine={str(folder / 'bad.jsonl')!r})
  return config
""")
  train = ('train', f'--config={config}', f'--workdir={workdir}')
  return train, jopd(*train), folder


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  return tiny.save_model(tmp_path_factory.mktemp('models') / 'random')


class TestTrain:
  def test_it_ends_with_a_table_a_model_and_a_report(self, trained, workdir):
    _, (code, out, err), _ = trained
    assert code == 0, err
    head, warm, model, report = out.splitlines()
    assert head.split()[:2] == ['stage', 'student_before']
    summary = json.loads((workdir / 'summary.json').read_text())
    after = f'{summary["student_after"]:.3f}'
    assert warm.split() == ['warm', '0.000', after, '-', '-']
    assert model.split() == ['model', str(workdir / 'warm' / 'model')]
    assert pathlib.Path(report.split()[1]).is_file()
    settings = json.loads((workdir / 'config.json').read_text())
    assert settings['warm']['steps'] == 1

  def test_progress_compile_times_and_lost_rows_are_on_stderr(self, trained):
    # Kills: rows that vanish without a word, and progress in standard output.
    _, (_, _, err), folder = trained
    assert 'compiled student: evaluation in ' in err
    assert 'compiled warm: learner in ' in err
    assert 'warm: 100%' in err and '1/1' in err
    assert 'warning: ' in err and '1 of 10 rows are bad' in err
    assert '1 of 9 examples do not fit max_prompt_tokens=16' in err
    assert json.loads((folder / 'bad.jsonl').read_text())['row'] == 10

  def test_the_same_command_again_keeps_what_is_finished(
    self, trained, workdir
  ):
    # Kills: training anew, and a table of half of the stages.
    train, (_, out, _), _ = trained
    before = (workdir / 'metrics.jsonl').read_bytes()
    code, again, err = jopd(*train)
    assert (code, again) == (0, out) and 'warm: already finished' in err
    assert (workdir / 'metrics.jsonl').read_bytes() == before

  def test_a_finished_stage_is_not_passed_off_as_another(
    self, trained, workdir
  ):
    # Kills: 'already finished' for a stage whose settings have changed since.
    train, _, _ = trained
    before = (workdir / 'config.json').read_bytes()
    for key, value in (('seed', 3), ('warm.steps', 2), ('eval.prompts', 4)):
      message = refused(*train, f'--config.{key}={value}')
      assert f'another config.{key.split(".")[0]} (see' in message
    assert (workdir / 'config.json').read_bytes() == before

  @pytest.mark.parametrize(
    'key, value, fine',
    [
      ('distil.steps', 9, True),  # not finished
      ('stages', ('warm', 'distil'), True),  # one more
      ('remat', True, True),
      ('warm.steps', 9, False),
      ('models.student.hidden_size', 32, False),
    ],
  )
  def test_what_may_change_after_a_stage_is_finished(
    self, key, value, fine, tmp_path
  ):
    # Kills: asking for a new folder to add a stage, or to use more devices.
    config = tiny.get_config()
    config.stages = ('warm',)
    (tmp_path / 'warm').mkdir()
    (tmp_path / 'warm' / 'result.json').write_text('{}')
    (tmp_path / 'config.json').write_text(commands._json(config))
    config.update_from_flattened_dict({key: value})
    if fine:
      commands._refuse_other_work(tmp_path, config)
      return
    with pytest.raises(ValueError, match='finished with another config'):
      commands._refuse_other_work(tmp_path, config)

  def test_a_checkpoint_of_another_run_is_refused(
    self, trained, workdir, tmp_path
  ):
    # The stage is not finished, so its checkpoint decides.
    train, _, _ = trained
    copy = shutil.copytree(workdir, tmp_path / 'copy')
    (copy / 'warm' / 'result.json').unlink()
    other = (*train[:2], f'--workdir={copy}', '--config.seed=3')
    code, _, err = jopd(*other)
    assert code == 2
    assert 'was saved with seed = 0, this run has 3' in err.splitlines()[-1]

  def test_a_workdir_that_is_a_file(self, tmp_path):
    (tmp_path / 'file').write_text('')
    for name in ('file', 'file/run'):
      message = refused('train', TINY, f'--workdir={tmp_path / name}')
      assert 'is a file, not a folder' in message
    assert (tmp_path / 'file').read_text() == ''


class TestBadInput:
  """The cases of the promise; checks, build and recipe test the others."""

  @pytest.fixture
  def train(self, tmp_path):
    """Refused training; a line of Python may change the config first."""

    def train(change='', *overrides):
      file = tmp_path / 'changed.py'
      file.write_text(
        'import tiny\n\ndef get_config():\n'
        f'  config = tiny.get_config()\n  {change}\n  return config\n'
      )
      workdir = tmp_path / 'run'
      message = refused(
        *('train', f'--config={file}', f'--workdir={workdir}'), *overrides
      )
      # Before training starts: nothing is written.
      assert not workdir.exists()
      return message

    return train

  def test_an_unknown_key(self, train):
    message = train('', '--config.distil.step=3')
    assert (
      message == "config.distil has no setting 'step'; did you mean 'steps'?"
    )
    message = train('config.sede = 3')
    assert message == "a config has no setting 'sede'; did you mean 'seed'?"

  def test_a_value_of_another_type(self, train):
    assert '--config.distil.steps=x' in train('', '--config.distil.steps=x')

  def test_a_missing_file(self, train):
    missing = 'nowhere/a.py'
    assert missing in refused('train', f'--config={missing}', '--workdir=w')
    assert 'nowhere' in train("config.models.student = {'path': 'nowhere'}")
    rows = "config.data = dict(name='jsonl', path='nowhere.jsonl')"
    assert 'nowhere.jsonl: no such file' in train(rows)

  def test_corrupt_safetensors(self, train, tmp_path):
    # Kills: loading what is there of a file that was cut short.
    folder = tiny.save_model(tmp_path / 'cut')
    weights = pathlib.Path(folder) / 'model.safetensors'
    weights.write_bytes(weights.read_bytes()[:-100])
    code, out, err = jopd(
      *('train', TINY, f'--workdir={tmp_path / "run"}'),
      f"--config.models={{'student': {{'path': {folder!r}}}}}",
      "--config.stages=('warm',)",
    )
    assert (code, out) == (2, '')
    loading, message = err.splitlines()
    assert loading == f'loading student from {folder}'
    assert 'is not a whole safetensors file' in message

  def test_a_damaged_tokenizer(self, train, tmp_path):
    folder = tiny.save_model(tmp_path / 'cut')
    (pathlib.Path(folder) / 'tokenizer.json').write_text('{"version": ')
    assert folder in train(f"config.models.student = {{'path': {folder!r}}}")

  def test_a_tokenizer_without_a_chat_template(self, train, tmp_path):
    bare = builtin_tokenizer()
    bare.chat_template = None
    folder = tiny.save_model(tmp_path / 'bare', tokenizer=bare)
    message = train(f"config.models.student = {{'path': {folder!r}}}")
    assert 'the tokenizer has no chat template' in message

  def test_a_prompt_longer_than_the_limit(self, train):
    message = train('config.max_prompt_tokens = 5')
    assert 'do not fit max_prompt_tokens=5' in message

  def test_a_batch_that_the_mesh_cannot_divide(self, train):
    message = train('config.distil.batch_size = 60')
    assert message == (
      'config.distil: a batch of 60 rows cannot be divided over data * fsdp ='
      ' 8: choose a multiple of 8'
    )

  def test_a_row_without_its_field(self, train, tmp_path):
    path = tmp_path / 'rows.jsonl'
    path.write_text('{"question": "1 2"}\n')
    message = train(f"config.data = dict(name='jsonl', path={str(path)!r})")
    assert message.startswith(f'config.warm: data: {path}: 1 of 1 rows are bad')
    assert "row 1: no 'prompt' and no 'messages'" in message

  def test_a_misspelt_loss(self, train):
    # Kills: reading the data of stage one before the loss of stage one.
    message = train("config.warm.terms.demo.objective = 'negative_log'")
    assert message.startswith(
      'config.warm: terms.demo: a term has no objective'
    )
    assert "did you mean 'negative_log_likelihood'?" in message


class TestEval:
  def test_it_measures_what_the_run_measured(self, trained, workdir):
    # Kills: another seed, another dtype, another order of the prompts.
    train, _, _ = trained
    folder = workdir / 'warm' / 'model'
    code, out, err = jopd('eval', train[1], f'--model={folder}')
    assert code == 0, err
    found = json.loads(out)
    assert found.pop('model') == str(folder) and found['prompts'] == 8
    rows = (workdir / 'metrics.jsonl').read_text().splitlines()
    last = [row for row in map(json.loads, rows) if row['kind'] == 'eval'][-1]
    assert last['step'] == 1
    assert found == {name: last[name] for name in found}
    assert found['greedy_accuracy_low'] <= found['greedy_accuracy']
    assert 'compiled model: evaluation' in err and 'loading model' in err

  def test_a_folder_that_is_not_there(self):
    assert 'nowhere' in refused('eval', TINY, '--model=nowhere')


@pytest.fixture(scope='module')
def answers(model, tmp_path_factory):
  """The answers to 70 prompts, two each: more than one batch."""
  folder = tmp_path_factory.mktemp('sample')
  prompts, out = folder / 'prompts.jsonl', folder / 'answers.jsonl'
  rows = [json.dumps({'prompt': str(i), 'id': i}) for i in range(70)]
  prompts.write_text('\n'.join(rows))
  done = jopd(
    *('sample', f'--model={model}', f'--prompts={prompts}', f'--out={out}'),
    *('--n=2', '--max-new-tokens=3', '--top-p=0.9'),
  )
  return done, [json.loads(row) for row in out.read_text().splitlines()]


class TestSample:
  def test_every_prompt_gets_its_answers_in_order(self, answers):
    # Kills: rows that fill the last batch in the file, and a last batch that
    # compiles once more.
    (code, out, err), rows = answers
    assert (code, out) == (0, ''), err
    assert [row['id'] for row in rows] == [
      str(i) for i in range(70) for _ in range(2)
    ]
    assert all(1 <= row['tokens'] <= 3 for row in rows)
    assert all(row['stopped'] or row['tokens'] == 3 for row in rows)
    assert err.count('compiled rollout in ') == 1
    assert 'sample: 100%' in err and '140/140' in err

  def test_answers_to_one_prompt_differ(self, answers):
    # Kills: a key per prompt instead of one per answer.
    _, rows = answers
    pairs = zip(rows[::2], rows[1::2], strict=True)
    assert sum(a['response'] != b['response'] for a, b in pairs) > 35

  def test_greedy_answers_are_text_and_all_the_same(self, model):
    # Kills: JSON where text was asked for, and a temperature that is not 0.
    code, out, _ = jopd(
      *('sample', f'--model={model}', '--prompt=1 2 3', '--n=2'),
      *('--temperature=0', '--max-new-tokens=2'),
    )
    assert code == 0
    half = len(out) // 2
    assert out and out[:half] == out[half:]

  @pytest.mark.parametrize(
    'flags, part',
    [
      ([], 'give one of --prompt=TEXT and --prompts=FILE'),
      (['--prompt=a', '--prompts=b'], 'give one of'),
      (['--prompt=a', '--out=b'], '--out takes the answers to --prompts'),
      (['--prompt=a', '--n=0'], '--n and --max-new-tokens must be at least 1'),
      (['--prompt=a', '--temperature=-1'], 'temperature must be >= 0'),
      (['--prompt=a', '--top-p=2'], 'top_p must be in (0, 1]'),
      (['--prompts=nowhere.jsonl'], 'nowhere.jsonl: no such file'),
    ],
  )
  def test_flags_that_make_no_sense(self, flags, part):
    # Before the model is looked for, which is not there.
    assert part in refused('sample', '--model=nowhere', *flags)

  def test_a_model_that_is_not_there(self):
    message = refused('sample', '--model=nowhere', '--prompt=a')
    assert message.startswith('nowhere has no tokenizer')

  def test_a_bad_row_stops_it_and_the_answers_of_before_stay(
    self, model, tmp_path
  ):
    # Kills: leaving the row out, which shifts the answers after it; and
    # emptying --out before the prompts are read.
    prompts, out = tmp_path / 'prompts.jsonl', tmp_path / 'out.jsonl'
    prompts.write_text('{"prompt": "1"}\n' * 200 + '{"prmpt": "2"}\n')
    out.write_text('before')
    message = refused(
      *('sample', f'--model={model}', f'--prompts={prompts}', f'--out={out}')
    )
    assert "row 201: no 'prompt' and no 'messages'" in message
    assert out.read_text() == 'before'

  def test_an_out_that_is_a_folder(self, model, tmp_path):
    prompts = tmp_path / 'prompts.jsonl'
    prompts.write_text('{"prompt": "1"}\n')
    message = refused(
      *('sample', f'--model={model}', f'--prompts={prompts}'),
      f'--out={tmp_path}',
    )
    assert message == f'{tmp_path}: Is a directory'


class TestReport:
  def test_it_prints_where_the_page_is(self, trained, workdir, tmp_path):
    code, out, _ = jopd('report', workdir, f'--out={tmp_path}')
    assert (code, out) == (0, f'{tmp_path / "report.html"}\n')

  def test_a_folder_that_is_no_run(self, tmp_path):
    assert str(tmp_path) in refused('report', tmp_path)
