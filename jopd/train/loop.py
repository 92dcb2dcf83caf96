"""The one training loop. Every method is this loop with other functions."""

from collections.abc import Callable
import contextlib
from functools import partial
import logging
import math
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jopd import sharding
from jopd.evaluate.statistics import gap_recovery
from jopd.models import lora
from jopd.train.callbacks import Course
from jopd.train.checkpoint import Checkpoints
from jopd.train.errors import Stopped
from jopd.train.metrics import MetricsLog, means, merge
from jopd.train.notices import Notice, note_skipped
from jopd.train.replay_buffer import Replay
from jopd.train.stage import Run, Stage
from jopd.train.state import TrainState, init_state, state_shardings
from jopd.train.steps import Phases
from jopd.train.teachers import freeze

_log = logging.getLogger(__name__)


def run_stage(
  stage: Stage,
  run: Run,
  params: dict[str, dict],
  folder: pathlib.Path,
  *,
  strict: bool = False,
) -> tuple[dict, dict]:
  """Runs a stage to its end, from its newest checkpoint if there is one.

  Args:
    stage: what to do.
    run: what all stages share.
    params: model name -> parameters on the mesh. The student's are consumed,
      and those dropped that no later stage uses: `freeze` has kept its own.
    folder: of the stage; its checkpoints go below it, its rows to the logs in
      the folder above it.
    strict: refuses to go back behind a damaged checkpoint.

  Returns:
    The student's parameters, and the stage's results as they go into
    summary.json.

  Raises:
    NonFiniteLossError: too many updates in a row were skipped.
    Stopped: a signal asked for it; the last step is saved.
  """
  with contextlib.ExitStack() as stack:
    log, timings, checkpoints = _open(stage, run, folder, strict, stack)
    frozen = freeze(stage, run, params)
    state, shardings = _start(stage, run, params)
    phases = Phases(stage, run, frozen, shardings)
    clock = run.clock

    def evaluate(step: int, name: str, weights) -> None:
      with clock('eval'):
        accuracy = run.evaluate(name, weights)
      log.write(stage.name, step, 'eval', {'model': name, **accuracy})

    now = partial(phases.student, dtype=run.compute_dtype)
    course = Course(stage, run, now, shardings.params, log)
    stage_key = jax.random.fold_in(run.key, stage.index)
    replay = Replay(stage.replay, stage_key, stage.steps, run.mesh)

    def save(step: int, state: TrainState, *, force: bool) -> None:
      log.sync()
      kept = dict(iterator=stage.prompts.batches, course=course, replay=replay)
      resume = {name: one.get_state() for name, one in kept.items()}
      checkpoints.save(step, state, resume, replay.arrays, force=force)

    restored = checkpoints.restore(state)
    if restored:
      state = _resume(stage, run, restored, checkpoints, course, replay)
    done = int(state.step) // stage.update.num_minibatches
    for rows in (log, timings):
      rows.rewind(stage.name, done if restored else -1)
    if not restored:
      evaluate(0, stage.student.model, now(state))
      for role, name in stage.teachers.models.items():
        if name != stage.student.model:
          evaluate(0, name, phases.teachers(state)[role])

    notice = Notice(stage, run)
    skipped = int(state.guard.skipped)
    for step in (bar := _progress(stage, done)):
      _stop_if_asked(stage, run, step, partial(save, step, state, force=True))
      controlled = course.controlled()
      measured = {}
      for number in replay.begin(step, controlled):
        key = jax.random.fold_in(stage_key, number)
        parts, found = _sample(stage, run, phases, state, key, step, controlled)
        measured = merge(measured, found)
        replay.add(step * stage.update.num_minibatches, parts)
      version, parts = replay.take()
      for minibatch, batch in enumerate(parts):
        lag = step * stage.update.num_minibatches - version + minibatch
        with clock('data'):
          batch = phases.place(batch, lag)
        with clock('teacher'):
          hidden = phases.teach(state, batch)
        with clock('learner'):
          update = step * stage.update.num_minibatches + minibatch
          scalars = stage.loss.scalars(update, controlled)
          state, learned = phases.learn(state, hidden, batch, scalars)
        measured = merge(measured, learned | {'lag': (lag, 1)})
      row = _finished(means(measured)) | {'lag_max': float(lag)}
      made = step * stage.update.num_minibatches - skipped
      row['learning_rate'] = float(stage.update.learning_rate(made))
      row |= {f'controller/{name}': value for name, value in controlled.items()}
      skipped = int(state.guard.skipped)
      notice(row)
      log.write(stage.name, step + 1, 'train', row)
      note_skipped(stage, run, phases, row, state, hidden, batch, scalars)
      state = course.after(state, step + 1, row)
      last = step + 1 == stage.steps
      if last or (stage.eval_every and (step + 1) % stage.eval_every == 0):
        evaluate(step + 1, stage.student.model, now(state))
      with clock('save'):
        save(step + 1, state, force=last)
      timings.write(stage.name, step + 1, 'time', clock.snapshot())
      bar.set_postfix(_headline(row), refresh=False)
    results = _results(stage, log, timings) | {'skipped': skipped}
    return phases.student(state), results


def _open(
  stage: Stage, run: Run, folder: pathlib.Path, strict: bool, stack
) -> tuple[MetricsLog, MetricsLog, Checkpoints]:
  """What the stage writes to; the stack closes it."""
  opened = lambda resource: stack.enter_context(contextlib.closing(resource))
  shown = dict(trackers=run.loggers)
  return (
    opened(MetricsLog(folder.parent, **shown)),
    opened(MetricsLog(folder.parent, 'timings', **shown)),
    opened(
      Checkpoints(
        folder / 'checkpoints',
        **run.checkpoint,
        fingerprint=stage.fingerprint,
        strict=strict,
      )
    ),
  )


def _stop_if_asked(stage: Stage, run: Run, step: int, save: Callable) -> None:
  """Saves and leaves when a signal came, of which all hosts know then."""
  if number := sharding.largest(np.array([run.should_stop()])):
    save()
    raise Stopped(number, f'{stage.name} is saved at step {step}')


def _sample(
  stage: Stage, run: Run, phases: Phases, state, key, step, controlled
):
  """The next prompts and what is learnt of the responses to them.

  Returns:
    Batches on the host, one for each update, and metrics.
  """
  clock, how = run.clock, stage.rollouts.sampling(step, controlled)
  with clock('data'):
    prompts = next(stage.prompts.batches)
  with clock('rollout'):
    answers = phases.respond(state, prompts, key, how)
  with clock('reward'):
    grades = phases.grade(prompts, answers)
    measured = phases.measure(answers, grades)
  with clock('data'):
    return phases.pack(prompts, answers, grades), measured


def _resume(
  stage: Stage, run: Run, restored, checkpoints, course, replay
) -> TrainState:
  """The state of a checkpoint; what else it holds goes where it belongs."""
  state, resume = restored
  stage.prompts.batches.set_state(resume['iterator'])
  course.set_state(resume['course'])
  waiting = checkpoints.pending(replay.abstract(resume['replay']))
  replay.set_state(resume['replay'], waiting)
  done = int(state.step) // stage.update.num_minibatches
  _log.info('%s: resumed at step %d', stage.name, done)
  return state


def _progress(stage: Stage, done: int) -> tqdm:
  """The steps that are left, on a bar."""
  return tqdm(
    range(done, stage.steps),
    desc=stage.name,
    unit='step',
    # A log file gets a line now and then, a terminal a bar that moves.
    mininterval=0.1 if sys.stderr.isatty() else 30.0,
  )


def _start(stage: Stage, run: Run, params) -> tuple[TrainState, TrainState]:
  """The stage's first state, on the mesh, and where its arrays live.

  Consumes the student's parameters. Those of teachers that move are copied.
  """
  own = (
    _adapters(stage, run) if stage.student.lora else params[stage.student.model]
  )
  where = jax.tree.map(lambda p: p.sharding, own)
  ahead = stage.weight_extrapolation is not None
  shardings = state_shardings(
    run.mesh,
    where,
    own,
    stage.update.tx,
    stage.teachers.sync,
    looks_ahead=ahead,
  )
  masters = lambda p: jax.tree.map(lambda x: x.astype(jnp.float32), p)
  # A copy, for else two arrays of the state could be one, and donated twice.
  start = jax.jit(
    lambda own, teachers: init_state(
      masters(own),
      stage.update.tx,
      jax.tree.map(jnp.copy, masters(teachers)),
      jax.tree.map(jnp.copy, masters(own)) if ahead else None,
    ),
    out_shardings=shardings,
  )
  teachers = {
    role: params[stage.teachers.models[role]] for role in stage.teachers.sync
  }
  state = start(own, teachers)
  for name in params.keys() - (stage.later - {stage.student.model}):
    del params[name]
  return state, shardings


def _adapters(stage: Stage, run: Run) -> dict:
  """The adapters that a stage begins with, on the mesh."""
  make = partial(lora.init, run.models[stage.student.model], stage.student.lora)
  # No step has that number.
  key = jax.random.fold_in(jax.random.fold_in(run.key, stage.index), 2**32 - 1)
  axes = lora.adapter_axes(run.models[stage.student.model], stage.student.lora)
  where = sharding.param_shardings(run.mesh, axes, jax.eval_shape(make, key))
  return jax.jit(make, out_shardings=where)(key)


def _finished(row: dict[str, float]) -> dict[str, float]:
  """With the effective share of the sample: 1 where it is the student's own."""
  if squared := row.pop('ratio_squared', None):
    row['ess'] = row['ratio'] ** 2 / squared
  return row


def _headline(row: dict[str, float]) -> dict[str, str]:
  shown = ('loss', 'reverse_kl', 'reward')
  return {name: f'{row[name]:.3f}' for name in shown if name in row}


def _results(stage: Stage, log: MetricsLog, timings: MetricsLog) -> dict:
  """The stage's part of summary.json, from what was written down."""
  accuracy = {
    (row['model'], row['step']): row['greedy_accuracy']
    for row in log.rows(stage.name)
    if row['kind'] == 'eval'
  }
  seconds: dict[str, float] = {}
  for row in timings.rows(stage.name):
    for name, value in row.items():
      if name.startswith('seconds/'):
        phase = name.removeprefix('seconds/')
        seconds[phase] = seconds.get(phase, 0.0) + value
  teachers = set(stage.teachers.models.values()) - {stage.student.model}
  before = accuracy[stage.student.model, 0]
  after = accuracy[stage.student.model, stage.steps]
  teacher = max((accuracy[n, 0] for n in teachers), default=None)
  recovered = gap_recovery(before, after, teacher or 0.0)
  return dict(
    student_before=before,
    student_after=after,
    teacher=teacher,
    gap_recovery=None if math.isnan(recovered) else recovered,
    steps=stage.steps,
    compile_seconds=seconds.pop('compile', 0.0),
    wall_seconds=seconds,
  )
