"""Kills a run at named and at random moments; it must end with the same bytes.

  python benchmarks/kills.py --kills=100 --out=kills

A run of two stages, imitation and self-distillation from an average of the
student, is killed with SIGKILL, started again, killed somewhere else, and so on
until it ends. Then its metrics, its models and the hash of its parameters are
compared with those of an undisturbed run, byte by byte. If they
differ, all kills of that run count as lost. Faults are put into forked children
by replacing functions; jopd knows nothing of them. The table goes to standard
output, each run to kills.jsonl in --out, from where the same command goes on.
"""

import argparse
import collections
import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import sys
import threading
import time
import traceback

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
os.environ['HF_HUB_OFFLINE'] = '1'

# Before children are forked: what they share costs them nothing. No array is
# made here, since a fork does not take JAX's threads along.
import grain
import orbax.checkpoint as ocp
import transformers

from jopd.cli import output, train
from jopd.data.tokenizer import builtin_tokenizer
from jopd.models import files, hf
from jopd.run import config as configs
from jopd.train import checkpoint, loop, manifest, pipeline
from jopd.train.metrics import MetricsLog

SHARED = grain, transformers  # imported for their children
SIZE = dict(
  model_type='qwen3',
  hidden_size=16,
  intermediate_size=32,
  num_hidden_layers=1,
  num_attention_heads=2,
  num_key_value_heads=1,
  head_dim=8,
  initializer_range=0.1,
  tie_word_embeddings=True,
)
ARMED = 6  # faults that a process may die of
MOST = 10  # kills on the way of one run


def get_config():
  """Two stages, a checkpoint at each step, of which one is kept."""
  config = configs.base()
  config.models.student = SIZE
  config.data = dict(name='running_sum', count=64)
  config.eval_data = dict(name='running_sum', count=8, split='test')
  config.max_prompt_tokens = config.max_response_tokens = 16
  config.eval.prompts = config.eval.batch_size = 8
  config.eval.samples = 0
  config.mesh.data = 1
  config.checkpoint = dict(every=1, keep=1)
  config.stages = ('warm', 'distil')
  config.warm = configs.stage(
    response_source='dataset',
    steps=3,
    batch_size=8,
    loss=dict(demo=dict(objective='negative_log_likelihood')),
  )
  config.distil = configs.stage(
    teachers=dict(teacher='student'),
    teacher_sync=dict(teacher=dict(name='ema', decay=0.9)),
    steps=3,
    batch_size=8,
    loss=dict(match=dict(objective='divergence', divergence='reverse_kl')),
  )
  return config


class Fault:
  """When a process is killed, and how its parent learns it."""

  def __init__(self, name, workdir, count, rng):
    self._name, self._left, self.rng = name, count, rng
    self._met = pathlib.Path(f'{workdir}.met')

  def due(self):
    """Whether this is the time: once, when it was asked often enough."""
    self._left -= 1
    return self._left == 0

  def die(self):
    """At once, as the system ends a process that takes too much memory."""
    self._met.write_text(self._name)
    os.kill(os.getpid(), signal.SIGKILL)

  def soon(self, most):
    """Dies within `most` seconds, whatever the process is doing then."""
    timer = threading.Timer(self.rng.uniform(0, most), self.die)
    timer.daemon = True
    timer.start()

  def half_written(self, path, content, mode='wb'):
    """Dies when the first half of a file, or of a row, was written."""
    with path.open(mode) as file:
      file.write(content[: len(content) // 2])
    self.die()

  def half_removed(self, folder):
    """Dies when some files of a folder are gone."""
    victims = [p for p in pathlib.Path(folder).rglob('*') if p.is_file()]
    for path in victims[: len(victims) // 2 + 1]:
      path.unlink()
    self.die()


def on(owner, name, *, before=None, after=None):
  """Replaces a function by itself with something before or after it."""
  function = getattr(owner, name)

  def replaced(*args, **options):
    if before:
      before(*args)
    result = function(*args, **options)
    if after:
      after(*args)
    return result

  setattr(owner, name, replaced)


def _kill(fault, where=lambda *_: True):
  """For `on`: dies when it is due, where the arguments say so."""
  return lambda *args: where(*args) and fault.due() and fault.die()


def _named(*names):
  return lambda path, *_: path.name in names


def _is_model(partial, folder):
  return folder.name == 'model'


SAVES = checkpoint.Checkpoints
# What is killed -> a function that puts it in place, in the child.
FAULTS = {
  'before a save': lambda f: on(SAVES, 'save', before=_kill(f)),
  'while arrays are saved': lambda f: on(
    ocp.Checkpointer, 'save', before=lambda *_: f.due() and f.soon(0.05)
  ),
  'between arrays and manifest': lambda f: on(
    manifest, 'describe', before=_kill(f)
  ),
  'half a manifest': lambda f: on(
    files,
    'write_json',
    before=lambda path, fields: (
      path.name == manifest.NAME
      and f.due()
      and f.half_written(path, json.dumps(fields).encode())
    ),
  ),
  'before a folder gets its name': lambda f: on(
    pathlib.Path, 'rename', before=_kill(f)
  ),
  'after a folder got its name': lambda f: on(
    pathlib.Path, 'rename', after=_kill(f)
  ),
  'after a save': lambda f: on(SAVES, 'save', after=_kill(f)),
  'before old checkpoints go': lambda f: on(SAVES, '_retire', before=_kill(f)),
  'while an old checkpoint goes': lambda f: on(
    shutil,
    'rmtree',
    before=lambda folder, *_: (
      str(folder).endswith('.old') and f.due() and f.half_removed(folder)
    ),
  ),
  'while the final model is written': lambda f: on(
    hf, '_write_tensors', before=lambda *_: f.due() and f.soon(0.02)
  ),
  'before the final model gets its name': lambda f: on(
    files, 'publish', before=_kill(f, _is_model)
  ),
  'after the final model got its name': lambda f: on(
    files, 'publish', after=_kill(f, _is_model)
  ),
  'before the result': lambda f: on(
    pipeline, '_write_json', before=_kill(f, _named('result.json'))
  ),
  "before the stage's manifest": lambda f: on(
    pipeline, '_write_json', before=_kill(f, _named(manifest.NAME))
  ),
  'between two stages': lambda f: on(pipeline, 'run_stage', before=_kill(f)),
  'before the summary': lambda f: on(
    pipeline, '_write_json', before=_kill(f, _named('summary.json'))
  ),
  'half a row of a log': lambda f: on(
    MetricsLog,
    '_append',
    before=lambda log: (
      log._waiting
      and f.due()
      and f.half_written(log._path, log._waiting[0], 'ab')
    ),
  ),
  'before a log is cut back': lambda f: on(
    os, 'replace', before=_kill(f, lambda new, old: 'metrics' in str(old))
  ),
  'in a rollout': lambda f: on(
    loop, 'rollout_step', before=lambda *_: f.due() and f.soon(0.05)
  ),
  'in an update': lambda f: on(
    loop, 'update_step', before=lambda *_: f.due() and f.soon(0.05)
  ),
  'any moment': lambda f: f.soon(30),
}


def child(workdir, faults=(), rng=None):
  """Runs the rest of the run in a fork; what killed it, '' for nothing."""
  told = pathlib.Path(f'{workdir}.met')
  told.unlink(missing_ok=True)
  pid = os.fork()
  if pid:
    status = os.waitpid(pid, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
      raise SystemExit(f'a run failed; see {workdir}.log')
    return told.read_text() if os.WIFSIGNALED(status) else ''
  code = 1
  try:
    log = os.open(f'{workdir}.log', os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    for name in faults:
      FAULTS[name](Fault(name, workdir, rng.choice((1, 1, 2, 3)), rng))
    output.prepare()
    train.run(get_config(), workdir)
    code = 0
  except BaseException:
    traceback.print_exc()
  os._exit(code)


def outcome(workdir):
  """What must not depend on kills."""
  digest = lambda path: hashlib.sha256(path.read_bytes()).hexdigest()
  summary = json.loads((workdir / 'summary.json').read_text())
  return {
    'metrics': digest(workdir / 'metrics.jsonl'),
    'params': summary['params_sha256'],
    'warm': digest(workdir / 'warm/model/model.safetensors'),
    'model': digest(workdir / 'distil/model/model.safetensors'),
    'checkpoints': sorted(p.name for p in workdir.glob('*/checkpoints/*')),
    'accuracy': [s['student_after'] for s in summary['stages'].values()],
  }


def one_run(workdir, rng, tried):
  """Kills one run until it ends; what killed it, in order."""
  met = []
  while len(met) < MOST:
    # Those that were met least often; the first that comes along kills.
    count = lambda name: (tried[name] + met.count(name), rng.random())
    fault = child(workdir, sorted(FAULTS, key=count)[:ARMED], rng)
    if not fault:
      return met
    met.append(fault)
  # Most runs have had their kills before they come to their last moment.
  if fault := child(workdir, ['before the summary'], rng):
    met.append(fault)
    child(workdir)
  return met


def main():
  """Runs the benchmark."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--kills', type=int, default=100)
  parser.add_argument('--out', type=pathlib.Path, required=True)
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args()
  args.out.mkdir(parents=True, exist_ok=True)
  builtin_tokenizer()
  reference = args.out / 'reference'
  if not (reference / 'summary.json').exists():
    shutil.rmtree(reference, ignore_errors=True)
    child(reference)
  expected = outcome(reference)
  record = args.out / 'kills.jsonl'
  record.touch()
  runs = [json.loads(line) for line in record.read_text().splitlines()]
  tried = collections.Counter(f for run in runs for f in run['met'])
  start = time.perf_counter()
  while sum(len(run['met']) for run in runs) < args.kills:
    rng = random.Random(f'{args.seed}/{len(runs)}')
    workdir = args.out / f'run-{len(runs)}'
    shutil.rmtree(workdir, ignore_errors=True)
    met = one_run(workdir, rng, tried)
    found = outcome(workdir)
    wrong = [name for name in expected if found[name] != expected[name]]
    runs.append({'met': met, 'wrong': wrong})
    tried.update(met)
    with record.open('a') as file:
      file.write(json.dumps(runs[-1]) + '\n')
    if not wrong:
      shutil.rmtree(workdir)
    print(f'{sum(map(len, (r["met"] for r in runs)))} kills', file=sys.stderr)
  print(table(runs))
  seconds = time.perf_counter() - start
  lost = sum(len(run['met']) for run in runs if run['wrong'])
  kills = sum(len(run['met']) for run in runs)
  print(
    json.dumps(
      {'kills': kills, 'runs': len(runs), 'lost': lost, 'seconds': seconds}
    )
  )
  sys.exit(1 if lost else 0)


def table(runs):
  """Fault, tried, survived, lost, as Markdown."""
  rows = ['| killed | tried | survived | lost |', '|---|---|---|---|']
  lost = collections.Counter(f for r in runs if r['wrong'] for f in r['met'])
  tried = collections.Counter(f for r in runs for f in r['met'])
  for fault in [*FAULTS, 'all']:
    of = [c.total() if fault == 'all' else c[fault] for c in (tried, lost)]
    rows.append(f'| {fault} | {of[0]} | {of[0] - of[1]} | {of[1]} |')
  return '\n'.join(rows)


if __name__ == '__main__':
  main()
