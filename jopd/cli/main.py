"""The console command: flags, help texts and exit codes."""

import argparse
from collections.abc import Sequence
import importlib
import os
import sys
import traceback

from jopd import __version__
from jopd.run.config import did_you_mean
from jopd.train import errors

_EPILOG = """\
exit codes: 0 done; 1 an error, with its traceback; 2 a flag, a setting or an
input file is wrong (one line names it); 4 the disk is full; 5 the loss or the
gradient is not finite; 130 Ctrl-C, 143 SIGTERM: train has saved its state.
"""
_JOPD = """\
On-policy distillation of language models: a student learns on its own rollouts,
and a teacher scores every token of them. A first run, on a laptop:

  jopd train --config=configs/quickstart.py --workdir=runs/quickstart

`jopd COMMAND --help` says more, with examples.
"""
_TRAIN = """\
Runs the stages of a config file: each trains one model, on rollouts or on a
dataset, and saves it as a Hugging Face folder.

  jopd train --config=configs/quickstart.py --workdir=runs/quickstart

Any setting can be overridden, --config.distil.steps=100; jopd/run/config.py
lists them with their meaning. The same command again goes on where it stopped.
Afterwards DIR holds summary.json, metrics.jsonl, report.html, and for each
stage checkpoints/ and model/.
"""
_EVAL = """\
Greedy accuracy, avg@k and pass@k of a Hugging Face folder, on the evaluation
prompts of a config; prints JSON with 95 % intervals.

  jopd eval --config=configs/quickstart.py --model=runs/quickstart/distil/model

Any setting can be overridden: --config.eval.samples=16
--config.eval_data.count=1000. The stages of the config play no part. A config
with eval_tasks gets a table of them, and their numbers under "tasks". --output
keeps every answer: task, id, sample (0 is the greedy one), text, reward, length
in tokens, and whether it was cut off.
"""
_DOCTOR = """\
Checks before training whether these models, this data and this loss can work:
tokenizers and stop criteria, accuracies, the teacher's log-probs of the
student's responses, the loss and its gradient on them. docs/doctor.md explains
each check.

  jopd doctor --config=configs/quickstart.py --workdir=runs/quickstart

Any setting can be overridden. With --workdir, models come from its finished
stages. Exit code 0 if nothing was found, 3 with warnings, 2 if it will not
work, as for any other wrong input.
"""
_PLAN = """\
Compiles every phase of a config from shapes, without a weight, and prints what
each needs of a device: memory by kind, operations, bytes, traffic between
devices, estimated seconds. Also for a TPU that this machine does not have (pip
install 'jopd[tpu]'). docs/plan.md explains it.

  jopd plan --config=configs/quickstart.py
  jopd plan --config=FILE --topology=v5p:4x4x4 --config.mesh.fsdp=64

Any setting can be overridden. Exit code 0 if all fits with a tenth of the
memory to spare, 3 if with less, 2 if it does not fit, as for any wrong input.
"""
_SAMPLE = """\
Samples answers to one prompt, or to each row of a JSONL file (`messages` or
`prompt` rows), on standard output. Answers to --prompt are text, printed while
they are sampled; with --samples, one after the other. Answers to --input are
JSONL, each with its log-prob under the model and under the distribution that it
was sampled from. A stop string stays in the answer that it ends.

  jopd sample --model=runs/quickstart/distil/model --prompt='3 1 4 1 5 9'
  jopd sample --workdir=runs/quickstart --stage=warm --prompt='3 1 4 1 5 9'
  jopd sample --model=DIR --input=rows.jsonl --samples=4 --output=answers.jsonl
"""
_REPORT = """\
Draws the metrics of one run, or of several on the same axes: PNG files and one
self-contained report.html.

  jopd report runs/quickstart
  jopd report runs/quickstart runs/another --out=comparison
"""

_MAKE_ROOM = (
  'what was saved before is whole: make room, and the same command goes on'
)


class _Parser(argparse.ArgumentParser):
  """One line for a wrong flag, with the nearest right one."""

  def error(self, message: str):
    self.exit(2, f'{self.prog}: {message}\n')

  def refuse_unknown_flags(self, argv: Sequence[str]) -> None:
    """Before argparse does: it would first ask for a flag that is misspelt."""
    known = [o for a in self._actions for o in a.option_strings]
    for flag in (a.partition('=')[0] for a in argv if a.startswith('--')):
      if flag not in known:
        self.error(f'no flag {flag}{did_you_mean(flag, known)}')


def _parser() -> tuple[_Parser, dict[str, _Parser]]:
  parser = _Parser(
    prog='jopd',
    description=_JOPD,
    epilog=_EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('--version', action='version', version=__version__)
  commands = parser.add_subparsers(dest='command', metavar='COMMAND')
  by_name = {}

  def command(name: str, short: str, description: str):
    by_name[name] = commands.add_parser(
      name,
      help=short,
      description=description,
      epilog=_EPILOG,
      formatter_class=argparse.RawDescriptionHelpFormatter,
      allow_abbrev=False,
    )
    by_name[name].add_argument(
      '--debug', action='store_true', help='show tracebacks'
    )
    return by_name[name].add_argument

  add = command('train', 'run the stages of a config', _TRAIN)
  add('--config', required=True, metavar='FILE', help='a file of configs/')
  add('--workdir', required=True, metavar='DIR', help='where results go')
  add(
    '--strict',
    action='store_true',
    help='stop where a checkpoint or a finished model is damaged',
  )
  add(
    '--distributed',
    action='store_true',
    help='join the other hosts of the cluster first (TPU, Slurm, ...)',
  )
  add(
    '--coordinator',
    metavar='HOST:PORT',
    help='or without a cluster: address of process 0,',
  )
  add('--processes', type=int, metavar='N', help='number of processes,')
  add('--process', type=int, metavar='I', help='number of this one, from 0')
  add = command('eval', 'accuracy of a Hugging Face folder', _EVAL)
  add('--config', required=True, metavar='FILE', help='whose eval_data to use')
  add('--model', required=True, metavar='DIR', help='a Hugging Face folder')
  add('--output', metavar='FILE', help='where every graded answer goes (JSONL)')
  add = command('doctor', 'examine a config before training', _DOCTOR)
  add('--config', required=True, metavar='FILE', help='a file of configs/')
  add('--workdir', metavar='DIR', help='of jopd train, if stages have run')
  add('--prompts', type=int, default=64, help='of each stage (64)')
  add('--json', action='store_true', help='for machines')
  add = command('plan', 'memory and time of a config, by the compiler', _PLAN)
  add('--config', required=True, metavar='FILE', help='a file of configs/')
  add(
    '--topology',
    **dict(default='', metavar='TPU:SHAPE'),
    help="such as 'v5p:4x4x4'; default: the devices that are here",
  )
  add('--json', action='store_true', help='for machines')
  _sample_flags(command('sample', 'sample answers of a model', _SAMPLE))
  add = command('report', 'draw the metrics of runs', _REPORT)
  add('runs', nargs='+', metavar='RUN', help='a --workdir of jopd train')
  add('--out', metavar='DIR', help='default: the first RUN')
  return parser, by_name


def _sample_flags(add) -> None:
  add('--model', metavar='DIR', help='a Hugging Face folder')
  add('--workdir', metavar='DIR', help='instead: of jopd train')
  add(
    '--stage', metavar='NAME', help='of --workdir (the last that is finished)'
  )
  add('--prompt', metavar='TEXT', help='one user turn')
  add('--input', metavar='FILE', help='a JSONL file instead')
  add('--field', default='prompt', help='where --input has prompts (prompt)')
  add('--output', metavar='FILE', help='where the answers to --input go')
  add('--samples', type=int, default=1, help='answers per prompt (1)')
  add('--max-tokens', type=int, default=256, help='per answer (256)')
  add('--temperature', type=float, default=1.0, help='0 is greedy (1.0)')
  add('--top-k', type=int, default=0, help='0 keeps all tokens (0)')
  add('--top-p', type=float, default=1.0, help='in (0, 1] (1.0)')
  add('--min-p', type=float, default=0.0, help='in [0, 1]; 0 keeps all (0.0)')
  add(
    '--stop',
    **dict(action='append', default=[], metavar='TEXT'),
    help='ends an answer; may be given several times',
  )
  add('--seed', type=int, default=0, help='same seed, same answers (0)')


def run(argv: Sequence[str] | None = None) -> None:
  """Entry point of the console command; exits with the code of `_EPILOG`."""
  name, *rest = (sys.argv[1:] if argv is None else argv) or ['--help']
  parser, commands = _parser()
  if name.startswith('-'):
    parser.refuse_unknown_flags([name])
    parser.parse_args([name])
  if name not in commands:
    parser.error(f'no command {name!r}{did_you_mean(name, commands)}')
  command = commands[name]
  overrides = [a for a in rest if a.startswith('--config.')]
  for override in overrides:
    if '=' not in override:
      command.error(f'{override} has no value; write {override}=VALUE')
  rest = [a for a in rest if a not in overrides]
  command.refuse_unknown_flags(rest)
  arguments = command.parse_args(rest)
  if overrides and 'config' not in arguments:
    command.error(f'{overrides[0]}: {name} takes no config')
  sys.exit(_run(name, arguments, overrides))


def _run(name: str, arguments, overrides: Sequence[str]) -> int:
  try:
    # Late, so that --help and a wrong flag do not wait for JAX.
    command = importlib.import_module(f'jopd.cli.{name}')
    code = command.main(arguments, overrides)
    sys.stdout.flush()
    return code or 0
  except BrokenPipeError:
    # Whoever read (`| head`) has enough; the interpreter flushes once more.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
  except KeyboardInterrupt:
    print('jopd: interrupted', file=sys.stderr)
    return 130
  except Exception as error:
    code = errors.exit_code(error)
    if arguments.debug or code == errors.FAILED:
      traceback.print_exc()
    if code != errors.FAILED:
      print(f'jopd {name}: {_line(error, code)}', file=sys.stderr)
    if 'jopd.train.distributed' in sys.modules:
      sys.modules['jopd.train.distributed'].give_up(code)
    return code


def _line(error: Exception, code: int) -> str:
  """An error on one line."""
  text = ' '.join(str(error).split())
  if code == errors.DISK_FULL:
    return f'the disk is full ({text:.500}); {_MAKE_ROOM}'
  return text
