"""The commands from end to end, on models that know nothing."""

import contextlib
import io
import json
import math
import pathlib
import shutil

import pytest
import tiny

from jopd.cli import eval as eval_command
from jopd.cli import main
from jopd.cli import sample as sample_command
from jopd.cli import train as train_command
from jopd.data import sources
from jopd.data.prompts import encode_prompt
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
  config.warm.data = dict(name='jsonl', path={str(folder / 'rows.jsonl')!r})
  config.max_bad_row_fraction = 0.2
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

  def test_progress_compile_times_and_lost_rows_are_on_stderr(
    self, trained, workdir
  ):
    # Kills: rows that vanish without a word, and progress in standard output.
    _, (_, _, err), _ = trained
    assert 'compiled student: evaluation in ' in err
    assert 'compiled warm: learner in ' in err
    assert 'warm: 100%' in err and '1/1' in err
    assert 'warning: ' in err and '1 of 10 rows are bad' in err
    assert '1 of 9 examples do not fit max_prompt_tokens=16' in err
    lines = (workdir / 'quarantine.jsonl').read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [(row['row'], row['bad']) for row in rows] == [
      (10, True),
      (9, False),
    ]

  def test_the_same_command_again_keeps_what_is_finished(
    self, trained, workdir
  ):
    # Kills: training anew, and a table of half of the stages.
    train, (_, out, _), _ = trained
    names = ('metrics.jsonl', 'quarantine.jsonl')
    before = [(workdir / name).read_bytes() for name in names]
    code, again, err = jopd(*train)
    assert (code, again) == (0, out) and 'warm: already finished' in err
    assert [(workdir / name).read_bytes() for name in names] == before

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
      ('remat', 'full', True),
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
    (tmp_path / 'config.json').write_text(train_command._json(config))
    config.update_from_flattened_dict({key: value})
    if fine:
      train_command.refuse_other_work(tmp_path, config)
      return
    with pytest.raises(ValueError, match='finished with another config'):
      train_command.refuse_other_work(tmp_path, config)

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
      # Before training starts: nothing is written, but for rows that are bad.
      written = [x.name for x in workdir.iterdir()] if workdir.exists() else []
      assert set(written) <= {'quarantine.jsonl'}
      return message

    return train

  def test_an_unknown_key(self, train):
    message = train('', '--config.distil.step=3')
    assert (
      message == "config.distil has no setting 'step'; did you mean 'steps'?"
    )
    message = train('config.sede = 3')
    assert message == "the config has no setting 'sede'; did you mean 'seed'?"

  def test_a_value_of_another_type(self, train):
    message = train('', '--config.distil.steps=x')
    assert message == "config.distil.steps must be int, got 'x'"

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
    # Before any weight is read.
    (message,) = err.splitlines()
    assert 'config.models.student' in message
    assert 'is not a valid safetensors file' in message

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
      "config.distil: response_source 'student': a batch of 60 rows cannot be"
      ' divided over data * fsdp = 8: choose a multiple of 8'
    )

  def test_a_row_without_its_field(self, train, tmp_path):
    path = tmp_path / 'rows.jsonl'
    path.write_text('{"question": "1 2"}\n')
    message = train(f"config.data = dict(name='jsonl', path={str(path)!r})")
    assert message.startswith(f'config.warm: data: {path}: 1 of 1 rows are bad')
    assert "row 1: no 'prompt' and no 'messages'" in message

  def test_a_misspelt_loss(self, train):
    # Kills: reading the data of stage one before the loss of stage one.
    message = train("config.warm.loss.demo.objective = 'negative_log'")
    assert message.startswith(
      "config.warm: loss.demo: jopd has no objective 'negative_log'"
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

  def test_several_tasks_make_a_table_and_every_answer_is_kept(
    self, trained, workdir, tmp_path
  ):
    # Kills: one task's numbers for all, and answers without a task's name.
    config = tmp_path / 'two_tasks.py'
    config.write_text(
      'import tiny\n'
      'def get_config():\n'
      '  config = tiny.get_config()\n'
      '  task = dict(name="running_sum", split="test")\n'
      '  config.eval_tasks.few = dict(count=3, **task)\n'
      '  config.eval_tasks.more = dict(count=5, seed=1, **task)\n'
      '  config.eval.samples = 1\n'
      '  return config\n'
    )
    answers = tmp_path / 'answers.jsonl'
    argv = ('eval', f'--config={config}', f'--output={answers}')
    argv += (f'--model={workdir / "warm" / "model"}',)
    code, out, err = jopd(*argv)
    assert code == 0, err
    tasks = json.loads(out)['tasks']
    assert {task: found['prompts'] for task, found in tasks.items()} == {
      'few': 3,
      'more': 5,
    }
    table = [line.split() for line in err.splitlines()]
    assert [line[0] for line in table if line][-3:] == ['few', 'more', 'mean']
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    for task, found in tasks.items():
      own = [row for row in rows if row['task'] == task]
      assert len(own) == 2 * found['prompts']
      greedy = [row['reward'] for row in own if row['sample'] == 0]
      assert sum(greedy) / len(greedy) == found['greedy_accuracy']
    assert 'answers.jsonl exists' in refused(*argv)

  def test_the_table_has_percentages_with_intervals(self):
    numbers = dict(prompts=4, greedy_accuracy=0.75, truncated=0.5)
    numbers |= dict(greedy_accuracy_low=0.3006, greedy_accuracy_high=0.9544)
    other = numbers | dict(greedy_accuracy=0.25)
    table = eval_command.table({'a': numbers, 'b': other}).splitlines()
    assert [line.split(maxsplit=1) for line in table] == [
      ['greedy_accuracy'],
      ['a', '75.0 [30.1, 95.4]'],
      ['b', '25.0 [30.1, 95.4]'],
      ['mean', '50.0'],
    ]

  def test_a_folder_that_is_not_there(self):
    assert 'nowhere' in refused('eval', TINY, '--model=nowhere')


@pytest.fixture(scope='module')
def own(tmp_path_factory):
  """Writes a config whose reward has some body; returns its flag."""
  file = tmp_path_factory.mktemp('own') / 'mine.py'

  def own(body):
    file.write_text(
      'import tiny\n\n'
      f'def mine(response, example, *, worth=0.0):\n  {body}\n\n'
      'def get_config():\n'
      '  config = tiny.get_config()\n'
      "  config.stages = ('warm',)\n"
      '  config.reward = mine\n'
      '  return config\n'
    )
    return f'--config={file}'

  return own


@pytest.fixture(scope='module')
def mine(own, tmp_path_factory):
  """The folder of a finished run, and the command that goes on with it."""
  folder = tmp_path_factory.mktemp('runs')
  command = (
    *('train', own('return worth'), f'--workdir={folder}'),
    '--config.reward.worth=1.0',
  )
  return folder, command, jopd(*command)


class TestOwnFunctions:
  """A reward that is defined in the config's own file."""

  def test_it_trains_with_overridden_settings_and_is_recorded(self, mine):
    folder, command, (code, _, err) = mine
    assert code == 0, err
    summary = json.loads((folder / 'summary.json').read_text())
    assert summary['student_after'] == 1.0
    reward = json.loads((folder / 'config.json').read_text())['reward']
    file = command[1].removeprefix('--config=')
    assert reward == {'name': f'{file}:mine', 'worth': 1.0}

  def test_a_changed_source_is_noted_each_time_and_the_run_goes_on(
    self, mine, own
  ):
    # Kills: a change that is noted once, or that ends the run, and one that is
    # noted where there is none.
    _, command, (_, _, first) = mine
    assert 'the source of' not in first
    own('return worth + 0.25')
    for _ in range(2):
      code, _, err = jopd(*command)
      assert code == 0, err
      [note] = [s for s in err.splitlines() if 'the source of' in s]
      assert note.endswith('mine.py:mine has changed since the run began')
    own('return worth')
    assert 'the source of' not in jopd(*command)[2]

  def test_eval_uses_it_and_a_bug_names_its_line(self, mine, own):
    # Kills: one line and code 2 for a bug in a function of one's own.
    folder, _, _ = mine
    model = f'--model={folder / "warm" / "model"}'
    code, out, err = jopd('eval', own('return 1 - worth'), model)
    assert code == 0, err
    assert json.loads(out)['greedy_accuracy'] == 1.0
    code, out, err = jopd('eval', own("raise KeyError('price')"), model)
    assert (code, out) == (1, '')
    assert 'mine.py", line 4, in mine' in err and "KeyError: 'price'" in err

  @pytest.mark.parametrize('command', ['doctor', 'plan'])
  def test_doctor_and_plan_take_it(self, command, own):
    code, out, err = jopd(command, own('return worth'), '--json')
    assert code in (0, 3) and json.loads(out), err

  def test_a_signature_that_does_not_fit_is_refused(self, own):
    message = refused(
      *('train', own('return worth'), '--workdir=w'),
      '--config.reward.value=1',
    )
    assert "'value'" in message and 'config.reward' in message


def sample(model, *flags):
  """The text that `jopd sample` prints, of a run that must not fail."""
  code, out, err = jopd('sample', f'--model={model}', *flags)
  assert code == 0, err
  return out


class Flushed(io.StringIO):
  """Keeps how much text was there at each flush."""

  def __init__(self):
    super().__init__(newline='')
    self.flushed = []

  def flush(self):
    self.flushed.append(len(self.getvalue()))


def read(rows: str):
  return [json.loads(row) for row in rows.splitlines()]


@pytest.fixture(scope='module')
def questions(tmp_path_factory):
  """A file of 70 prompts."""
  path = tmp_path_factory.mktemp('sample') / 'rows.jsonl'
  rows = [json.dumps({'question': f'1 {i}', 'id': i}) for i in range(70)]
  path.write_text('\n'.join(rows))
  return [f'--input={path}', '--field=question']


@pytest.fixture(scope='module')
def answers(model, questions):
  """Two answers to each of the prompts: in two calls, a few at a time."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sample_command, '_ROWS_PER_CALL', 90)
    patch.setattr(sample_command, '_MAX_NUM_SEQS', 16)
    flags = ('--samples=2', '--max-tokens=3', '--top-p=0.9')
    done = jopd('sample', f'--model={model}', *questions, *flags)
  return done, read(done[1])


class TestSample:
  def test_every_prompt_gets_its_answers_in_order(self, answers):
    # Kills: rows that fill the last batch in the file, a last batch that
    # compiles once more, and answers in the order in which they end.
    (code, _, err), rows = answers
    assert code == 0, err
    asked = [i for i in range(70) for _ in range(2)]
    assert [row['id'] for row in rows] == [str(i) for i in asked]
    assert [row['prompt'] for row in rows] == [f'1 {i}' for i in asked]
    assert all(1 <= row['tokens'] <= 3 for row in rows)
    assert all(row['end'] == 'stop' or row['tokens'] == 3 for row in rows)
    assert {row['end'] for row in rows} <= {'stop', 'length'}
    assert err.count('compiled rollout in ') == 1
    assert 'sample: 100%' in err and '140/140' in err

  def test_answers_to_one_prompt_differ(self, answers):
    # Kills: a key per prompt instead of one per answer.
    _, rows = answers
    pairs = zip(rows[::2], rows[1::2], strict=True)
    assert sum(a['response'] != b['response'] for a, b in pairs) > 35

  def test_log_probs_are_of_the_model_and_of_what_was_sampled(self, answers):
    # The share of the vocabulary that top-p leaves has less mass, so what is
    # drawn from it is likelier there. Kills: the two in one another's place,
    # and a mean.
    _, rows = answers
    gains = [row['sampler_logp'] - row['logp'] for row in rows]
    most = [-row['tokens'] * math.log(0.9) for row in rows]
    assert all(0 < g <= m + 1e-4 for g, m in zip(gains, most, strict=True))
    # Almost uniform over 384 tokens.
    per_token = [row['logp'] / row['tokens'] for row in rows]
    assert -8 < min(per_token) and max(per_token) < -4

  def test_greedy_answers_are_text_and_all_the_same(self, model):
    # Kills: JSON where text was asked for, and a temperature that is not 0.
    out = sample(
      *(model, '--prompt=1 2 3', '--samples=2'),
      *('--temperature=0', '--max-tokens=2'),
    )
    half = len(out) // 2
    assert out and out[:half] == out[half:]

  def test_a_prompt_is_answered_while_it_is_read(self, model, tmp_path):
    # Kills: text that is printed once it is whole, or is not flushed, and other
    # answers than --input gets.
    flags = ('--samples=3', '--max-tokens=12', '--seed=3')
    prompts = tmp_path / 'rows.jsonl'
    prompts.write_text('{"prompt": "1 2 3"}')
    rows = read(sample(model, f'--input={prompts}', *flags))
    said = Flushed()
    with contextlib.redirect_stdout(said), pytest.raises(SystemExit):
      main.run(['sample', f'--model={model}', '--prompt=1 2 3', *flags])
    text = said.getvalue()
    assert text == ''.join(row['response'] + '\n' for row in rows)
    before_the_first_is_whole = text.index('\n')
    assert sum(0 < n <= before_the_first_is_whole for n in said.flushed) > 5

  def test_an_interrupted_run_leaves_whole_rows(
    self, model, questions, tmp_path, monkeypatch
  ):
    # Kills: rows that are written in pieces, and answers of finished calls that
    # are lost.
    interrupted = iter([False, True])
    real = sample_command.decode

    def decode(*args):
      if next(interrupted):
        raise KeyboardInterrupt
      return real(*args)

    monkeypatch.setattr(sample_command, '_ROWS_PER_CALL', 16)
    monkeypatch.setattr(sample_command, 'decode', decode)
    out = tmp_path / 'out.jsonl'
    flags = (*questions, '--max-tokens=2', f'--output={out}')
    code, _, err = jopd('sample', f'--model={model}', *flags)
    assert code == 130 and err.endswith('jopd: interrupted\n')
    text = out.read_text()
    assert text.endswith('\n')
    assert [row['id'] for row in read(text)] == [str(i) for i in range(16)]

  def test_a_stop_string_ends_answers_and_changes_nothing_before(
    self, model, questions
  ):
    # Kills: strings that are looked for after the fact, or cut from the text.
    flags = (*questions, '--max-tokens=12', '--seed=3')
    free = read(sample(model, *flags))
    stopped = read(sample(model, *flags, '--stop=zz', '--stop=e'))
    cut = 0
    for whole, row in zip(free, stopped, strict=True):
      assert whole['response'].startswith(row['response'])
      if 'e' in whole['response']:
        cut += row['tokens'] < whole['tokens']
        assert row['end'] == 'stop' and 'e' in row['response']
      elif row['end'] == 'length':
        assert row['response'] == whole['response']
    assert cut > 9

  def test_a_seed_is_an_answer(self, model):
    # Kills: a seed that is not used, and a hidden one that is.
    flags = (model, '--prompt=1 2 3', '--max-tokens=12')
    first, again, other = (
      sample(*flags, f'--seed={seed}') for seed in (3, 3, 4)
    )
    assert first == again != other

  def test_a_workdir_gives_the_last_finished_stage(
    self, trained, workdir, tmp_path
  ):
    flags = ('--prompt=1 2 3', '--max-tokens=2')
    want = sample(workdir / 'warm' / 'model', *flags)
    for stage in ([], ['--stage=warm']):
      code, out, err = jopd('sample', f'--workdir={workdir}', *stage, *flags)
      assert (code, out) == (0, want), err
    message = refused('sample', f'--workdir={workdir}', '--stage=wram', *flags)
    assert "no finished stage 'wram'; did you mean 'warm'?" in message
    message = refused('sample', f'--workdir={tmp_path}', *flags)
    assert 'holds no run' in message and 'config.json' in message
    shutil.copy(workdir / 'config.json', tmp_path)
    message = refused('sample', f'--workdir={tmp_path}', *flags)
    assert message == f'--workdir={tmp_path} holds no finished stage yet'

  @pytest.mark.parametrize(
    'flags, part',
    [
      ([], 'give one of --prompt=TEXT and --input=FILE'),
      (['--prompt=a', '--input=b'], 'give one of --prompt'),
      (['--prompt=a', '--workdir=b'], 'give one of --model=DIR and --workdir'),
      (['--prompt=a', '--stage=b'], '--stage takes a stage of --workdir'),
      (['--prompt= '], '--prompt is empty'),
      (['--prompt=a', '--output=b'], '--output takes the answers to --input'),
      (['--prompt=a', '--samples=0'], '--samples and --max-tokens must be at'),
      (['--prompt=a', '--max-tokens=0'], '--samples and --max-tokens must'),
      (['--prompt=a', '--temperature=-1'], 'temperature must be >= 0'),
      (['--prompt=a', '--top-p=2'], 'top_p must be in (0, 1]'),
      (['--prompt=a', '--top-p=0'], 'top_p must be in (0, 1]'),
      (['--prompt=a', '--top-k=-1'], 'top_k must be >= 0'),
      (['--prompt=a', '--min-p=2'], 'min_p must be'),
      (['--input=a', '--output=nowhere/b'], 'nowhere is not a folder'),
      (['--input=nowhere.jsonl'], 'nowhere.jsonl: no such file'),
    ],
  )
  def test_flags_that_make_no_sense(self, flags, part):
    # Before the model is looked for, which is not there.
    assert part in refused('sample', '--model=nowhere', *flags)

  def test_a_model_that_is_not_there(self):
    message = refused('sample', '--model=nowhere', '--prompt=a')
    assert message.startswith('model nowhere: nowhere has no tokenizer')

  def test_a_stop_string_that_is_none(self, model):
    message = refused(
      'sample', f'--model={model}', '--prompt=a', '--stop=b', '--stop='
    )
    assert message == (
      '--stop: a stop string is empty: it would end every response'
    )

  def test_a_prompt_for_which_the_model_has_no_room(self, model, tmp_path):
    # The longest one decides, wherever it stands.
    folder = shutil.copytree(model, tmp_path / 'short')
    config = json.loads((folder / 'config.json').read_text())
    config['max_position_embeddings'] = 40
    (folder / 'config.json').write_text(json.dumps(config))
    prompts = tmp_path / 'rows.jsonl'
    prompts.write_text('{"prompt": "1"}\n' + '{"prompt": "1 2 3 4 5 6"}\n')
    flags = (f'--model={folder}', f'--input={prompts}', '--temperature=0')
    turn = {'role': 'user', 'content': '1 2 3 4 5 6'}
    tokens = len(encode_prompt(builtin_tokenizer(), [turn]))
    code, _, err = jopd('sample', *flags, f'--max-tokens={40 - tokens}')
    assert code == 0, err
    message = refused('sample', *flags, f'--max-tokens={41 - tokens}')
    assert message == (
      f'rows.jsonl:2: a prompt of {tokens} tokens and --max-tokens='
      f'{41 - tokens} exceed max_position_embeddings = 40 of {folder}'
    )

  def test_a_bad_row_stops_it_before_anything_is_written(self, model, tmp_path):
    # Kills: leaving the row out, which shifts the answers after it; and
    # making --output before the prompts are read.
    prompts, out = tmp_path / 'prompts.jsonl', tmp_path / 'out.jsonl'
    prompts.write_text('{"prompt": "1"}\n' * 200 + '{"prmpt": "2"}\n')
    message = refused(
      *('sample', f'--model={model}', f'--input={prompts}', f'--output={out}')
    )
    assert "row 201: no 'prompt' and no 'messages'" in message
    assert not out.exists()

  def test_an_output_is_written_once(self, model, tmp_path):
    # Kills: emptying a file, perhaps the one with the prompts.
    prompts, out = tmp_path / 'prompts.jsonl', tmp_path / 'out.jsonl'
    prompts.write_text('{"prompt": "1"}\n')
    flags = (f'--input={prompts}', f'--output={out}', '--max-tokens=2')
    assert sample(model, *flags) == ''
    before = out.read_text()
    [row] = read(before)
    assert row['prompt'] == '1' and row['id'] == 'prompts.jsonl:1'
    for there in (out, prompts, tmp_path):
      again = ('sample', '--model=nowhere', flags[0], f'--output={there}')
      assert refused(*again).startswith(f'--output={there} exists: remove it')
    assert out.read_text() == before


class TestDoctor:
  def test_a_run_that_has_not_begun(self, trained):
    # Kills: a verdict on weights that no stage will ever begin with.
    train, _, _ = trained
    stages = "--config.stages=('warm','distil')"
    code, out, _ = jopd('doctor', train[1], stages, '--json')
    assert code == 3
    document = json.loads(out)
    assert document['status'] == 'warn'
    checks = {(f['stage'], f['check']) for f in document['findings']}
    assert ('warm', 'demonstrations') in checks
    assert ('distil', 'not trained yet') in checks
    assert ('distil', 'student') not in checks

  def test_a_stage_is_examined_with_the_models_before_it(
    self, trained, workdir
  ):
    # One step of imitation, and a teacher that knows nothing.
    train, _, _ = trained
    stages = "--config.stages=('warm','distil')"
    how = (stages, '--prompts=16', '--config.mesh.fsdp=2')
    code, out, err = jopd('doctor', *train[1:], *how)
    assert code == 2, err
    assert max(map(len, out.splitlines())) <= 100
    assert '\ndistil\n' in out and 'not trained yet' not in out
    assert '  REFUSE  student ' in out and 'cold student' in out
    assert out.splitlines()[-1].startswith('will not work: ')
    assert 'examining distil' in err

  def test_another_config_than_that_of_the_workdir(self, trained, workdir):
    train, _, _ = trained
    message = refused('doctor', *train[1:], '--config.seed=3')
    assert 'finished with another config.seed' in message

  def test_a_wrong_setting_is_refused_as_for_training(self, tmp_path):
    message = refused('doctor', TINY, f'--workdir={tmp_path}')
    assert message == f'--workdir={tmp_path} holds no run: no config.json'
    message = refused('doctor', TINY, '--config.distil.steps=0')
    assert message == 'config.distil: steps must be at least 1, got 0'


class TestReport:
  def test_it_prints_where_the_page_is(self, trained, workdir, tmp_path):
    code, out, _ = jopd('report', workdir, f'--out={tmp_path}')
    assert (code, out) == (0, f'{tmp_path / "report.html"}\n')

  def test_a_folder_that_is_no_run(self, tmp_path):
    assert str(tmp_path) in refused('report', tmp_path)
