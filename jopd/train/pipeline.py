"""The stages of a run, one after the other, and what is kept of them."""

from collections.abc import Sequence
import hashlib
import importlib.metadata
import json
import os
import pathlib
import time

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp

from jopd import sharding
from jopd.models import hf
from jopd.train.loop import run_stage
from jopd.train.stage import Run, Stage


def train(
  run: Run, stages: Sequence[Stage], params: dict[str, dict], workdir
) -> dict:
  """Runs the stages that are not finished yet.

  A finished stage is a folder with its result and its student as a Hugging
  Face folder, `<workdir>/<stage>/model`, in float32: the next stage, or the
  next process, takes the student from there bit by bit.

  Args:
    run: what the stages share.
    stages: in order.
    params: model name -> parameters on the mesh; consumed.
    workdir: of the run.

  Returns:
    What is written to `<workdir>/summary.json`: the results of each stage
    under 'stages', those of the last stage, which stand for the whole run,
    with total seconds, the hash of the final student, versions and device.
  """
  start = time.perf_counter()
  workdir = pathlib.Path(workdir)
  results = {}
  for stage in stages:
    folder = workdir / stage.name
    result, model = folder / 'result.json', folder / 'model'
    if model.exists() and result.exists():
      run.say(f'{stage.name}: already finished')
      params[stage.student] = _reload(model, params[stage.student])
    else:
      if stage.start:
        params[stage.student] = jax.tree.map(jnp.copy, params[stage.start])
      params[stage.student], done = run_stage(stage, run, params, folder)
      _write_json(result, done)
      student = run.models[stage.student]
      hf.save(
        model,
        student,
        params[stage.student],
        tokenizer=run.tokenizer,
        stop_ids=run.stop_ids,
      )
    results[stage.name] = json.loads(result.read_text())
  last = stages[-1]
  summary = _overall(results, last.name) | dict(
    stages=results,
    model=str(workdir / last.name / 'model'),
    params_sha256=params_sha256(params[last.student]),
    process_seconds=time.perf_counter() - start,
    versions={n: importlib.metadata.version(n) for n in _VERSIONS},
    device=jax.devices()[0].device_kind,
    devices=jax.device_count(),
  )
  _write_json(workdir / 'summary.json', summary)
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
  accuracies = ('student_before', 'student_after', 'teacher', 'gap_recovered')
  return {name: final[name] for name in accuracies} | dict(
    steps=sum(r['steps'] for r in results.values()),
    wall_seconds=seconds,
    compile_seconds=sum(r['compile_seconds'] for r in results.values()),
  )


def _write_json(path: pathlib.Path, value: dict) -> None:
  """Whole or not at all: a reader never sees half a file. One host writes."""
  if jax.process_index() == 0:
    _write_whole(path, json.dumps(value, indent=2) + '\n')
  multihost_utils.sync_global_devices(str(path))


def _write_whole(path: pathlib.Path, text: str) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_suffix('.tmp')
  with temporary.open('w') as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  os.replace(temporary, path)
