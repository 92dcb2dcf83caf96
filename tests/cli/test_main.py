"""Flags in, exit codes out: what scripts and people see of the command."""

import subprocess
import sys
import types

import pytest

from jopd import __version__
from jopd.cli import main
from jopd.cli import train as train_command
from jopd.run.config import ConfigError
from jopd.train.errors import NonFiniteLossError, Stopped, WrongInputError

COMMANDS = ('train', 'eval', 'doctor', 'plan', 'sample', 'report')
TRAIN = ('train', '--config=a.py', '--workdir=w')


@pytest.fixture
def jopd(capsys):
  """Runs the command; its exit code, standard output and standard error."""

  def jopd(*argv):
    with pytest.raises(SystemExit) as exit:
      main.run(argv)
    return exit.value.code, *capsys.readouterr()

  return jopd


@pytest.fixture
def train(monkeypatch):
  """Replaces what `jopd train` does."""
  return lambda function: monkeypatch.setattr(train_command, 'main', function)


@pytest.mark.parametrize('argv', [[], ['--help'], *([c] for c in COMMANDS)])
def test_help_teaches_by_example_in_80_columns(argv, jopd, monkeypatch):
  # Kills: a help that is only a list of flags, and lines that wrap.
  monkeypatch.setenv('COLUMNS', '80')
  code, out, err = jopd(*argv, *(['--help'] if argv else []))
  assert (code, err) == (0, '')
  assert max(map(len, out.splitlines())) <= 80
  assert 'exit codes: 0 done' in out
  one = argv and argv[0] in COMMANDS
  assert f'\n  jopd {argv[0] if one else "train"} ' in out
  if not one:
    assert all(f'\n    {command} ' in out for command in COMMANDS)


def test_help_and_wrong_flags_do_not_wait_for_jax():
  # Kills: an import of JAX at the top of cli/main.py or run/config.py.
  code = (
    'import sys\n'
    'from jopd.cli import main\n'
    'try: main.run(sys.argv[1:])\n'
    'finally:\n'
    "  print([m for m in ('jax', 'numpy', 'transformers') if m in sys.modules])"
  )
  for argv in (['train', '--help'], ['train', '--confg=x'], ['--version']):
    done = subprocess.run(
      [sys.executable, '-c', code, *argv],
      **dict(capture_output=True, text=True, timeout=60),
    )
    assert done.stdout.splitlines()[-1] == '[]', done.stderr


def test_version(jopd):
  assert jopd('--version') == (0, f'{__version__}\n', '')


@pytest.mark.parametrize(
  'argv, line',
  [
    (['trian'], "jopd: no command 'trian'; did you mean 'train'?"),
    (['-x'], 'jopd: unrecognized arguments: -x'),
    (
      ['train', '--confg=a.py', '--workdir=w'],
      "jopd train: no flag --confg; did you mean '--config'?",
    ),
    (
      ['train'],
      'jopd train: the following arguments are required: --config, --workdir',
    ),
    (
      ['train', '--config'],
      'jopd train: argument --config: expected one argument',
    ),
    (
      [*TRAIN, '--config.distil.steps', '3'],
      'jopd train: --config.distil.steps has no value;'
      ' write --config.distil.steps=VALUE',
    ),
    (
      ['sample', '--model=m', '--samples=two'],
      "jopd sample: argument --samples: invalid int value: 'two'",
    ),
    (
      ['sample', '--model=m', '--max-new-tokens=3'],
      "jopd sample: no flag --max-new-tokens; did you mean '--max-tokens'?",
    ),
    (
      ['sample', '--model=m', '--config.seed=1'],
      'jopd sample: --config.seed=1: sample takes no config',
    ),
    ([*TRAIN, 'more'], 'jopd train: unrecognized arguments: more'),
  ],
)
def test_a_wrong_command_line_is_one_line_and_code_2(argv, line, jopd):
  # Kills: argparse's usage in front, and asking for --config when --confg was
  # given.
  assert jopd(*argv) == (2, '', f'{line}\n')


def test_overrides_and_flags_reach_the_command(jopd, train):
  # Kills: an override that is taken for a flag, or lost.
  seen = []
  train(lambda *call: seen.append(call))
  overrides = ['--config.a=1', "--config.b=it's = here"]
  assert jopd(TRAIN[0], overrides[0], *TRAIN[1:], overrides[1])[0] == 0
  [(arguments, given)] = seen
  assert (arguments.config, arguments.workdir) == ('a.py', 'w')
  assert given == overrides


def fail(error):
  def function(*_):
    raise error

  return function


@pytest.mark.parametrize(
  'error, code, line',
  [
    (ConfigError('two\n lines'), 2, 'jopd train: two lines'),
    (WrongInputError('a is damaged'), 2, 'jopd train: a is damaged'),
    (
      OSError(28, 'No space left on device', 'a'),
      4,
      "jopd train: the disk is full ([Errno 28] No space left on device: 'a')",
    ),
    (NonFiniteLossError('loss is nan'), 5, 'jopd train: loss is nan'),
    (Stopped(15, 'warm is at 3'), 143, 'jopd train: SIGTERM: warm is at 3'),
    (KeyboardInterrupt(), 130, 'jopd: interrupted'),
  ],
)
def test_an_expected_error_is_one_line_with_its_own_code(
  error, code, line, jopd, train
):
  # Kills: code 0 after a failure, a traceback, and a disk that is full taken
  # for a mistake of the user.
  train(fail(error))
  found, out, err = jopd(*TRAIN)
  assert (found, out) == (code, '')
  assert err.startswith(line) and len(err.splitlines()) == 1


# Kills: one line and code 2 for a bug, which Slurm would not try again.
@pytest.mark.parametrize(
  'error',
  [
    *(ValueError('a'), RuntimeError('a'), FloatingPointError('a')),
    *(FileNotFoundError(2, 'No such file', 'a'), PermissionError(13, 'a')),
  ],
)
def test_any_other_error_keeps_its_type_and_traceback(error, jopd, train):
  error.add_note('jopd: in config.reward')
  train(fail(error))
  code, out, err = jopd(*TRAIN)
  assert (code, out) == (1, '')
  assert err.startswith('Traceback') and 'in function' in err
  last, note = err.splitlines()[-2:]
  assert last == f'{type(error).__name__}: {error}'
  assert note == 'jopd: in config.reward'


def test_debug_shows_the_traceback_and_keeps_the_line(jopd, train):
  train(fail(ConfigError('a')))
  code, _, err = jopd(*TRAIN, '--debug')
  assert code == 2
  assert err.startswith('Traceback') and 'in function' in err
  assert err.splitlines()[-1] == 'jopd train: a'


def test_a_reader_that_has_enough_is_no_failure(tmp_path):
  # `jopd report | head -0`. Kills: a traceback, also the one that the
  # interpreter prints when it flushes at its end.
  script = tmp_path / 'script.py'
  script.write_text(
    'import sys, types\n'
    'from jopd.cli import main\n'
    'write = lambda *_: print("line\\n" * 100_000)\n'
    'sys.modules["jopd.cli.report"] = types.SimpleNamespace(main=write)\n'
    'main.run(["report", "a"])\n'
  )
  command = f'"{sys.executable}" {script} | head -0; echo ${{PIPESTATUS[0]}}'
  done = subprocess.run(
    ['bash', '-c', command],
    **dict(capture_output=True, text=True, timeout=60),
  )
  assert (done.stdout, done.stderr) == ('0\n', '')


def test_the_console_command_is_this_one():
  # Kills: an entry point that names another function.
  from importlib import metadata

  [entry] = metadata.entry_points(group='console_scripts', name='jopd')
  assert isinstance(entry.load(), types.FunctionType)
  assert entry.load() is main.run
