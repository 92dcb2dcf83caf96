"""The one training loop. Every method is this loop with other functions."""

import contextlib
import functools
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
from jopd.models import lora
from jopd.train import random_streams
from jopd.train.callbacks import Callback, Setup, StepContext
from jopd.train.callbacks.base import controlled_scalars, make_callbacks
from jopd.train.callbacks.held_out import make_measure
from jopd.train.checkpoint import Checkpoints
from jopd.train.errors import Stopped
from jopd.train.metrics import MetricsLog, gap_recovery, means, merge
from jopd.train.rollout_batch import (
  Sampled,
  cut_to_buckets,
  rollout_metrics,
  split_groups,
)
from jopd.train.stage import Run, Stage
from jopd.train.state import TrainState, init_state, state_shardings
from jopd.train.steps import (
  context_step,
  filter_step,
  make_programs,
  place,
  reward_step,
  rollout_step,
  student_params,
  teacher_params,
  teacher_step,
  trace_update,
  update_step,
)
from jopd.train.teachers import freeze
from jopd.train.update_guard import EqualRewards, report_skipped

_log = logging.getLogger(__name__)


def run_stage(  # noqa: C901
  stage: Stage,
  run: Run,
  params: dict[str, dict],
  folder: pathlib.Path,
  *,
  strict: bool = False,
) -> tuple[dict, dict]:
  """Runs a stage to its end, from its newest checkpoint if there is one.

  The metrics of a step are fetched and written once the next rollout has been
  dispatched; sooner if a callback reads them, or an evaluation, a checkpoint or
  the end of the stage comes first.

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
  clock, updates = run.clock, stage.update.num_minibatches
  with contextlib.ExitStack() as stack:
    closing = lambda x: stack.enter_context(contextlib.closing(x))
    log, timings = (
      closing(MetricsLog(folder.parent, name, loggers=run.loggers))
      for name in ('metrics', 'timings')
    )
    checkpoints = closing(
      Checkpoints(
        folder / 'checkpoints',
        **run.checkpoint,
        fingerprint=stage.fingerprint,
        strict=strict,
      )
    )
    # Keys, schedules and group statistics must not queue behind the programs.
    stack.enter_context(jax.default_device(_host_device()))
    frozen = freeze(stage, run, params)
    state, shardings = start_state(stage, run, params)
    programs = make_programs(stage, run, shardings)
    student = partial(student_params, programs, frozen, dtype=run.compute_dtype)
    stage_key = jax.random.fold_in(run.key, stage.index)
    callbacks = make_callbacks(
      stage.callbacks,
      Setup(
        '',
        stage.name,
        stage.steps,
        run.mesh,
        stage_key,
        measure=stage.prompts.held_out
        and make_measure(
          run,
          stage.student.model,
          stage.prompts.held_out,
          stage.name,
          stage_key,
        ),
        clock=clock,
        lora=stage.student.lora is not None,
        folder=folder.parent,
        student=student,
        trained=jax.tree.map(_shape, state.params),
      ),
    )
    warn_of_equal_rewards = EqualRewards(stage.name)
    compares_rewards = stage.loss.reads.reward and stage.rollouts.group_size > 1

    def evaluate(step: int, name: str, weights) -> None:
      with clock('eval'):
        accuracy = run.evaluate(name, weights)
      log.write(stage.name, step, 'eval', {'model': name, **accuracy})

    def sample(step: int, state: TrainState, controlled, samples) -> Sampled:
      """The responses to the next prompts, ready to be learnt."""
      number = progress['sampled']
      progress['sampled'] += 1
      key = jax.random.fold_in(stage_key, number)
      with clock('data'):
        prompts = next(stage.prompts.batches)
        settings = stage.rollouts.sampling(step, controlled)
      with clock('rollout'):
        batch, info = rollout_step(
          stage,
          run,
          programs,
          frozen,
          state,
          prompts,
          key,
          settings,
          while_sampling=partial(write_pending, state),
        )
      with clock('reward'):
        batch, info = reward_step(stage, run, prompts, batch, info)
        batch, info = filter_step(stage, batch, info)
      with clock('data'):
        batch, info = context_step(stage, prompts, batch, info)
        sources = list(stage.rollouts.sources)
        measured = rollout_metrics(batch, info, sources)
        samples.append((prompts, info, measured))
        batch = cut_to_buckets(batch, run.num_length_buckets)
        parts = split_groups(batch, updates, stage.rollouts.group_size)
      return Sampled(step * updates, parts)

    def fetch(step: int, learned, guard, controlled, samples):
      """The metrics of a step on the host; waits for it."""
      with clock('learner'):
        learned, guard = jax.device_get((learned, guard))
      measured = [metrics for _, _, metrics in samples]
      row = means(functools.reduce(merge, [*measured, *learned], {}))
      row['staleness_max'] = float(learned[-1]['staleness'][0])
      if 'logp_difference' in row:
        row['sampling/logp_difference'] = row.pop('logp_difference')
      if squared := row.pop('ratio_squared', None):
        # The effective share of the sample: 1 where it is the student's own.
        row['ess'] = row['ratio'] ** 2 / squared
      made = (step - 1) * updates - progress['skipped']
      row['learning_rate'] = float(stage.update.learning_rate(made))
      row |= {f'controller/{name}': x for name, x in controlled.items()}
      progress.update(skipped=int(guard.skipped), guard=guard)
      return row

    def write_pending(state: TrainState) -> None:
      """Writes the metrics of the last step, if they are not written yet."""
      if not pending:
        return
      context, batch, scalars = pending.pop()
      metrics = context.metrics
      log.write(stage.name, context.step, 'train', metrics)
      bar.set_postfix(_headline(metrics), refresh=False)
      if compares_rewards:
        warn_of_equal_rewards(metrics)
      report_skipped(
        stage.name,
        context.step,
        metrics,
        progress['guard'],
        max_consecutive_skips=stage.update.max_consecutive_skips,
        trace=partial(
          trace_update, stage, run, programs, frozen, state, batch, scalars
        ),
      )

    def save(step: int, state: TrainState, *, force: bool) -> None:
      def collect() -> tuple[dict, dict]:
        write_pending(state)
        log.sync()
        resume = dict(
          iterator=stage.prompts.batches.get_state(),
          sampled=progress['sampled'],
          callbacks={n: x.get_state() for n, x in callbacks.items()},
        )
        arrays = {n: x.arrays() for n, x in callbacks.items()}
        return resume, {n: x for n, x in arrays.items() if x}

      with clock('save'):
        checkpoints.save(step, state, collect, force=force)

    progress, pending, done = {'sampled': 0, 'skipped': 0}, [], 0
    restored = checkpoints.restore(state)
    if restored:
      state, resume = restored
      done = int(state.step) // updates
      progress.update(
        sampled=resume['sampled'], skipped=int(state.guard.skipped)
      )
      stage.prompts.batches.set_state(resume['iterator'])
      _restore(callbacks, state, resume['callbacks'], checkpoints)
      _log.info('%s: resumed at step %d', stage.name, done)
    for rows in (log, timings):
      rows.rewind(stage.name, done if restored else -1)
    if not restored:
      for callback in callbacks.values():
        callback.start(state)
      evaluate(0, stage.student.model, student(state))
      for role, name in stage.teachers.models.items():
        if name != stage.student.model:
          evaluate(0, name, teacher_params(stage, frozen, state)[role])

    for step in (bar := _bar(stage, done)):
      # All hosts stop if one got a signal.
      if signal := sharding.largest(np.array([run.should_stop()])):
        save(step, state, force=True)
        raise Stopped(signal, f'{stage.name} is saved at step {step}')
      controlled, samples = controlled_scalars(callbacks), []
      rollout = partial(sample, step, state, controlled, samples)
      for callback in callbacks.values():
        rollout = partial(callback.around_rollout, step, rollout)
      version, minibatches = rollout()
      write_pending(state)  # still there if nothing was sampled
      metrics = []
      for index, batch in enumerate(minibatches):
        update = step * updates + index
        scalars = stage.loss.scalars(update, controlled)
        with clock('data'):
          batch = place(run, batch, update - version)
        with clock('teacher'):
          scored = teacher_step(stage, programs, frozen, state, batch)
        with clock('learner'):
          state, learned = update_step(
            stage, run, programs, frozen, state, scored, scalars
          )
        del scored
        metrics.append(learned | {'staleness': (float(update - version), 1)})
      context = StepContext(
        step + 1,
        state,
        stage.rollouts.sampling(step, controlled),
        [(prompts, info) for prompts, info, _ in samples],
        partial(fetch, step + 1, metrics, state.guard, controlled, samples),
      )
      pending.append((context, batch, scalars))
      for callback in callbacks.values():
        callback.after_step(context)
      state = context.state
      last = step + 1 == stage.steps
      due = last or (stage.eval_every and (step + 1) % stage.eval_every == 0)
      if due or context.is_fetched:
        write_pending(state)
      if due:
        evaluate(step + 1, stage.student.model, student(state))
      save(step + 1, state, force=last)
      timings.write(stage.name, step + 1, 'time', clock.snapshot())
    results = _results(stage, log, timings) | {'skipped': progress['skipped']}
    return student_params(programs, frozen, state), results


def start_state(
  stage: Stage, run: Run, params: dict[str, dict]
) -> tuple[TrainState, TrainState]:
  """The stage's first state, on the mesh, and where its arrays live.

  Consumes the student's parameters. Those of synced teachers are copied.
  """
  trained = params[stage.student.model]
  if stage.student.lora:
    trained = _adapters(stage, run)
  where = jax.tree.map(lambda p: p.sharding, trained)
  shardings = state_shardings(
    run.mesh, where, trained, stage.update.tx, stage.teachers.sync
  )
  masters = lambda p: jax.tree.map(lambda x: x.astype(jnp.float32), p)
  # A copy, for else two arrays of the state could be one, and donated twice.
  start = jax.jit(
    lambda trained, teachers: init_state(
      masters(trained),
      stage.update.tx,
      jax.tree.map(jnp.copy, masters(teachers)),
    ),
    out_shardings=shardings,
  )
  teachers = {
    role: params[stage.teachers.models[role]] for role in stage.teachers.sync
  }
  state = start(trained, teachers)
  for name in params.keys() - (stage.later - {stage.student.model}):
    del params[name]
  return state, shardings


def _adapters(stage: Stage, run: Run) -> dict:
  """The adapters that a stage begins with, on the mesh."""
  model, adapters = run.models[stage.student.model], stage.student.lora
  make = partial(lora.init, model, adapters)
  key = jax.random.fold_in(run.key, stage.index)
  key = jax.random.fold_in(key, random_streams.ADAPTERS)
  axes = lora.adapter_axes(model, adapters)
  where = sharding.param_shardings(run.mesh, axes, jax.eval_shape(make, key))
  return jax.jit(make, out_shardings=where)(key)


def _restore(
  callbacks: dict[str, Callback],
  state: TrainState,
  saved: dict[str, dict],
  checkpoints: Checkpoints,
) -> None:
  """Gives each callback what the checkpoint has of it."""
  shapes = {
    name: callback.abstract(saved[name])
    for name, callback in callbacks.items()
    if name in saved
  }
  arrays = checkpoints.restore_arrays({n: x for n, x in shapes.items() if x})
  for name, callback in callbacks.items():
    if name in saved:
      callback.restore(saved[name], arrays.get(name, {}))
    else:
      callback.start(state)


def _host_device() -> jax.Device:
  try:
    return jax.local_devices(backend='cpu')[0]
  except RuntimeError:  # JAX_PLATFORMS leaves it out
    return jax.local_devices()[0]


def _shape(x: jax.Array) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def _bar(stage: Stage, done: int) -> tqdm:
  """The steps that are left, on a bar."""
  return tqdm(
    range(done, stage.steps),
    desc=stage.name,
    unit='step',
    # A log file gets a line now and then, a terminal a bar that moves.
    mininterval=0.1 if sys.stderr.isatty() else 30.0,
  )


def _headline(metrics: dict[str, float]) -> dict[str, str]:
  shown = ('loss', 'reverse_kl', 'reward')
  return {name: f'{metrics[name]:.3f}' for name in shown if name in metrics}


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
  student = stage.student.model
  teachers = set(stage.teachers.models.values()) - {student}
  before, after = accuracy[student, 0], accuracy[student, stage.steps]
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
