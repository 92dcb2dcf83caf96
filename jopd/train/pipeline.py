"""The stages of a run, one after the other, and what is kept of them."""

from collections.abc import Callable, Sequence
from functools import partial
import hashlib
import importlib.metadata
import json
import logging
import os
import pathlib
import shutil
import time

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp

from jopd import sharding
from jopd.models import files, hf
from jopd.train import checkpoint, distributed, manifest
from jopd.train.errors import WrongInputError
from jopd.train.loop import run_stage
from jopd.train.stage import Run, Stage

_log = logging.getLogger(__name__)


def train(
  run: Run,
  stages: Sequence[Stage],
  params: dict[str, dict],
  workdir,
  *,
  strict: bool = False,
) -> dict:
  """Runs the stages that are not finished yet.

  A finished stage is a folder with its student as a Hugging Face folder,
  `<workdir>/<stage>/model`, in float32, its result, and a manifest of both: the
  next stage, or the next process, takes the student from there bit by bit.

  Args:
    run: what the stages share.
    stages: in order.
    params: model name -> parameters on the mesh; consumed.
    workdir: of the run.
    strict: stops where a file of an earlier run is damaged, instead of going
      back to the newest checkpoint that is whole.

  Returns:
    What is written to `<workdir>/summary.json`: the results of each stage
    under 'stages', those of the last stage, which stand for the whole run,
    with total seconds, the hash of the final student, versions and device.

  Raises:
    WrongInputError: a file is damaged, and strict; or a finished stage is,
      and no checkpoint is left to make it again from.
  """
  start = time.perf_counter()
  workdir = pathlib.Path(workdir)
  results = {}
  for stage in stages:
    folder = workdir / stage.name
    result, model = folder / 'result.json', folder / 'model'
    if _is_finished(folder, strict):
      _log.info('%s: already finished', stage.name)
      params[stage.student.model] = _reload(model, params[stage.student.model])
    else:
      if stage.student.init_from:
        params[stage.student.model] = jax.tree.map(
          jnp.copy, params[stage.student.init_from]
        )
      params[stage.student.model], done = run_stage(
        stage, run, params, folder, strict=strict
      )
      student = run.models[stage.student.model]
      hf.save(
        model,
        student,
        params[stage.student.model],
        tokenizer=run.tokenizer,
        stop_ids=[int(i) for i in run.stops.ids if i >= 0],
      )
      _write_json(result, lambda done=done: done)
      # Last: with it the stage is finished.
      contents = partial(manifest.describe, folder, (model.name, result.name))
      _write_json(folder / manifest.NAME, contents)
    results[stage.name] = json.loads(result.read_text())
  last = stages[-1]
  summary = _overall(results, last.name) | dict(
    stages=results,
    model=str(workdir / last.name / 'model'),
    params_sha256=params_sha256(params[last.student.model]),
    process_seconds=time.perf_counter() - start,
    versions={n: importlib.metadata.version(n) for n in _VERSIONS},
    device=jax.devices()[0].device_kind,
    devices=jax.device_count(),
  )
  _write_json(workdir / 'summary.json', lambda: summary)
  return summary


_VERSIONS = (
  'jopd',
  'jax',
  'jaxlib',
  'flax',
  'optax',
  'orbax-checkpoint',
  'transformers',
  'numpy',
)


def _is_finished(folder: pathlib.Path, strict: bool) -> bool:
  """Whether a stage is finished and whole. What is damaged is moved aside."""
  damage, marked, steps = distributed.broadcast_from_host0(
    partial(_look, folder)
  )
  if not damage:
    return marked
  if not steps:
    raise WrongInputError(
      f'{folder} is not what a finished stage left ({damage}), and'
      f' {folder}/checkpoints holds nothing to make it from again: put the file'
      f' back, or remove {folder} to train the stage once more'
    )
  # Without the mark it was only interrupted while it was written.
  if marked and strict:
    raise WrongInputError(
      f'{folder} is damaged: {damage}; mend it, or make it again from the'
      f' checkpoint of step {steps[-1]} without --strict'
    )
  if marked:
    _log.warning(
      f'{folder} is damaged: {damage}; it is made again from the checkpoint of'
      f' step {steps[-1]}, and the old model is now model.damaged'
    )
    if jax.process_index() == 0:
      (folder / manifest.NAME).unlink()
      aside = folder / 'model.damaged'
      shutil.rmtree(aside, ignore_errors=True)
      if (folder / 'model').exists():
        (folder / 'model').rename(aside)
  return False


def _look(folder: pathlib.Path) -> tuple[str, bool, list[int]]:
  """What is wrong with a stage, whether it was finished, its checkpoints."""
  marked = (folder / manifest.NAME).exists()
  begun = marked or (folder / 'model').exists()
  damage = manifest.damage(folder) if begun else ''
  steps = checkpoint.examine(folder / 'checkpoints')[0] if damage else []
  return damage, marked, steps


def _reload(folder: pathlib.Path, like: dict) -> dict:
  """A finished student, placed like the parameters it takes the place of."""
  shardings = jax.tree.map(lambda p: p.sharding, like)
  return hf.load(folder, shardings=lambda *_: shardings)[1]


def params_sha256(params) -> str:
  """SHA-256 over names, dtypes, shapes and bytes of all parameters."""
  digest = hashlib.sha256()
  for path, leaf in sorted(
    (jax.tree_util.keystr(p), leaf)
    for p, leaf in jax.tree.leaves_with_path(params)
  ):
    array = sharding.whole(leaf)
    digest.update(f'{path} {array.dtype} {array.shape}'.encode())
    digest.update(array.tobytes())
  return digest.hexdigest()


def _overall(results: dict, last: str) -> dict:
  """The last stage's accuracies; steps and seconds of all stages."""
  final = results[last]
  seconds: dict[str, float] = {}
  for result in results.values():
    for phase, value in result['wall_seconds'].items():
      seconds[phase] = seconds.get(phase, 0.0) + value
  accuracies = ('student_before', 'student_after', 'teacher', 'gap_recovery')
  return {name: final[name] for name in accuracies} | dict(
    steps=sum(r['steps'] for r in results.values()),
    wall_seconds=seconds,
    compile_seconds=sum(r['compile_seconds'] for r in results.values()),
  )


def _write_json(path: pathlib.Path, value: Callable[[], dict]) -> None:
  """Whole or not at all: a reader never sees half a file. One host writes."""
  if jax.process_index() == 0:
    _write_whole(path, json.dumps(value(), indent=2) + '\n')
  multihost_utils.sync_global_devices(str(path))


def _write_whole(path: pathlib.Path, text: str) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_suffix('.tmp')
  with temporary.open('w') as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  os.replace(temporary, path)
  files.sync(path.parent)
