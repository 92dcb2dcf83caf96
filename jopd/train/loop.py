"""The one training loop. Every method is this loop with other functions."""

from collections.abc import Callable, Mapping
import pathlib
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from jopd import losses, sharding
from jopd.data.batching import PromptBatch, PromptIterator
from jopd.data.examples import Example
from jopd.models.api import Model
from jopd.programs import Program
from jopd.rollout.engine import decode, make_generate
from jopd.train.checkpoint import Checkpoints
from jopd.train.metrics import Clock, MetricsLog, means, merge
from jopd.train.state import TrainState, init_state, state_shardings
from jopd.train.step import Batch, Reduction, make_learn, make_teach


class Run(NamedTuple):
  """What the stages of a run share."""

  models: Mapping[str, Model]
  mesh: jax.sharding.Mesh
  tokenizer: object
  stop_ids: tuple[int, ...]
  vocab_size: int  # ids from here on are padding of the embeddings
  max_response_tokens: int
  compute_dtype: jnp.dtype
  grade: Callable[[str, Example], float]  # response text -> reward
  evaluate: Callable[[str, dict], dict[str, float]]  # model name, params
  checkpoint: Mapping[str, int]  # every, keep
  key: jax.Array
  say: Callable[[str], None]


class Stage(NamedTuple):
  """Who learns, from whose tokens, towards what."""

  name: str
  index: int  # among the run's stages; part of every random key
  student: str  # name of the model that learns
  teachers: Mapping[str, str]  # role -> name of a model, frozen in this stage
  source: str  # whose responses: 'dataset', 'student' or a teacher's role
  make_batches: Callable[[], PromptIterator]
  # Role -> what that teacher reads, [B, P] and [B], where the student reads
  # something else.
  contexts: Mapping[str, Callable[[PromptBatch], tuple]]
  make_terms: Callable[[jax.Array], Mapping[str, losses.Term]]
  reduction: Reduction
  tx: optax.GradientTransformation
  learning_rate: Callable[[int], float]
  steps: int
  group_size: int
  micro_batches: int
  sampling: Mapping[str, float]
  temperature: float
  chunk_tokens: int
  eval_every: int
  fingerprint: Mapping[str, object]  # what a checkpoint must agree on


def run_stage(
  stage: Stage, run: Run, params: dict[str, dict], folder: pathlib.Path
) -> tuple[dict, dict]:
  """Runs a stage to its end, from its newest checkpoint if there is one.

  Args:
    stage: what to do.
    run: what all stages share.
    params: model name -> parameters on the mesh. The student's are consumed.
    folder: of the stage; its checkpoints go below it, its rows to the logs in
      the folder above it.

  Returns:
    The student's parameters, and the stage's results as they go into
    summary.json.

  Raises:
    FloatingPointError: the loss or its gradient is no longer finite.
  """
  log = MetricsLog(folder.parent)
  timings = MetricsLog(folder.parent, 'timings')
  clock = Clock()
  frozen = _freeze(stage, run, params)
  state, shardings = _start(stage, run, params.pop(stage.student))
  programs = _Programs(stage, run, shardings)
  checkpoints = Checkpoints(
    folder / 'checkpoints', **run.checkpoint, fingerprint=stage.fingerprint
  )
  batches = stage.make_batches()

  def evaluate(step: int, name: str, weights) -> None:
    with clock('eval'):
      accuracy = run.evaluate(name, weights)
    log.write(stage.name, step, 'eval', {'model': name, **accuracy})

  restored = checkpoints.restore(state)
  if restored:
    state, iterator_state = restored
    batches.set_state(iterator_state)
    run.say(f'{stage.name}: resumed at step {int(state.step)}')
  for rows in (log, timings):
    rows.rewind(stage.name, int(state.step) if restored else -1)
  if not restored:
    evaluate(0, stage.student, state.params)
    for role, name in stage.teachers.items():
      if name != stage.student:
        evaluate(0, name, frozen[role])

  stage_key = jax.random.fold_in(run.key, stage.index)
  steps = range(int(state.step), stage.steps)
  # A log file gets a line now and then, a terminal a moving bar.
  interval = 0.1 if sys.stderr.isatty() else 30.0
  bar = tqdm(steps, desc=stage.name, unit='step', mininterval=interval)
  for step in bar:
    key = jax.random.fold_in(stage_key, step)
    with clock('data'):
      prompts = next(batches)
    with clock('rollout'):
      answers = _respond(stage, programs, frozen, state, prompts, key)
    with clock('reward'):
      measured = _measure(stage, run, prompts, answers)
    with clock('data'):
      batch = _batch(stage, run, prompts, answers)
    with clock('teacher'):
      hidden = jax.block_until_ready(programs.teach(frozen, batch))
    with clock('learner'):
      state, learned = programs.learn(state, frozen, hidden, batch)
      row = means(merge(measured, learned))
    row['learning_rate'] = float(stage.learning_rate(step))
    _refuse_non_finite(stage.name, step + 1, row)
    log.write(stage.name, step + 1, 'train', row)
    last = step + 1 == stage.steps
    if last or (stage.eval_every and (step + 1) % stage.eval_every == 0):
      evaluate(step + 1, stage.student, state.params)
    with clock('save'):
      checkpoints.save(state, batches.get_state(), force=last)
    timings.write(stage.name, step + 1, 'time', clock.snapshot())
    bar.set_postfix(_headline(row), refresh=False)
  checkpoints.close()
  results = _results(stage, log, timings, programs)
  log.close()
  timings.close()
  return state.params, results


class _Programs:
  """The compiled phases of a stage."""

  def __init__(self, stage: Stage, run: Run, shardings: TrainState):
    student = run.models[stage.student]
    teachers = {r: run.models[name] for r, name in stage.teachers.items()}
    self.sampler = None
    if stage.source != 'dataset':
      self.sampler = make_generate(
        student if stage.source == 'student' else teachers[stage.source],
        run.mesh,
        stop_ids=run.stop_ids,
        max_new_tokens=run.max_response_tokens,
        vocab_size=run.vocab_size,
        compute_dtype=run.compute_dtype,
        name=f'{stage.name}: rollout',
        say=run.say,
      )
    self.teach = Program(
      f'{stage.name}: teacher',
      make_teach(teachers, micro_batches=stage.micro_batches),
      say=run.say,
    )
    learn = make_learn(
      student,
      teachers,
      stage.make_terms,
      stage.tx,
      reduction=stage.reduction,
      micro_batches=stage.micro_batches,
      temperature=stage.temperature,
      compute_dtype=run.compute_dtype,
      chunk_tokens=stage.chunk_tokens,
      vocab_size=run.vocab_size,
    )
    self.learn = Program(
      f'{stage.name}: learner',
      learn,
      say=run.say,
      donate_argnums=0,
      # Without them the compiler may move parameters between steps.
      out_shardings=(shardings, sharding.replicated(run.mesh)),
    )

  @property
  def compile_seconds(self) -> float:
    programs = [self.teach, self.learn]
    if self.sampler:
      programs.append(self.sampler.program)
    return sum(p.compile_seconds for p in programs)


def _start(stage: Stage, run: Run, params) -> tuple[TrainState, TrainState]:
  """The stage's first state, on the mesh, and where its arrays live."""
  where = jax.tree.map(lambda p: p.sharding, params)
  shardings = state_shardings(run.mesh, where, params, stage.tx)
  start = jax.jit(
    lambda p: init_state(
      jax.tree.map(lambda x: x.astype(jnp.float32), p), stage.tx
    ),
    out_shardings=shardings,
  )
  return start(params), shardings


class _Answers(NamedTuple):
  """Responses to a batch of prompts, on the host; rows are prompts x group."""

  response: np.ndarray  # [B, T]
  response_length: np.ndarray  # [B]
  sampler_logp: np.ndarray  # [B, T]; zeros for a dataset's
  stopped: np.ndarray  # [B]


def _respond(stage, programs, frozen, state, prompts, key) -> _Answers:
  """What the stage's source says to each prompt, group_size times."""
  if stage.source == 'dataset':
    length = prompts.response_length
    return _Answers(
      prompts.response,
      length,
      np.zeros(prompts.response.shape, np.float32),
      length > 0,
    )
  policies = {'student': state.params, **frozen}
  rollout = programs.sampler(
    policies[stage.source],
    np.repeat(prompts.prompt, stage.group_size, axis=0),
    np.repeat(prompts.prompt_length, stage.group_size, axis=0),
    key,
    **stage.sampling,
  )
  return _Answers(
    *jax.device_get(
      (
        rollout.response,
        rollout.response_length,
        rollout.sampler_logp,
        rollout.stopped,
      )
    )
  )


def _measure(stage, run, prompts, answers):
  """Reward, length and truncation of the responses, as metrics."""
  rows = len(answers.response)
  examples = [e for e in prompts.examples for _ in range(stage.group_size)]
  texts = decode(run.tokenizer, answers)
  rewards = [run.grade(t, e) for t, e in zip(texts, examples, strict=True)]
  return {
    'reward': (float(np.sum(rewards)), rows),
    'response_length': (float(np.sum(answers.response_length)), rows),
    'truncated': (float(np.sum(~answers.stopped)), rows),
  }


def _batch(stage, run, prompts, answers) -> Batch:
  """The learner's input on the mesh: what each model reads, and responses."""
  group = lambda rows: np.repeat(rows, stage.group_size, axis=0)
  batch = Batch(
    prompt=group(prompts.prompt),
    prompt_length=group(prompts.prompt_length),
    teacher_prompts={
      role: tuple(map(group, _read(stage, role, prompts)))
      for role in stage.teachers
    },
    response=answers.response,
    response_length=answers.response_length,
    sampler_logp=answers.sampler_logp,
  )
  return sharding.put(batch, sharding.batch_sharding(run.mesh))


def _read(stage: Stage, role: str, prompts: PromptBatch):
  if role in stage.contexts:
    return stage.contexts[role](prompts)
  return prompts.prompt, prompts.prompt_length


def _freeze(stage: Stage, run: Run, params) -> dict[str, dict]:
  """Each role's parameters, as they are now, in the dtype that they run in.

  A student that teaches itself is copied: its own state will be donated.
  """
  own = lambda p: jnp.copy(p).astype(run.compute_dtype)
  cast = lambda p: p.astype(run.compute_dtype)
  return {
    role: jax.tree.map(own if name == stage.student else cast, params[name])
    for role, name in stage.teachers.items()
  }


def _refuse_non_finite(name: str, step: int, row: dict[str, float]) -> None:
  for metric in ('loss', 'grad_norm'):
    if not np.isfinite(row[metric]):
      raise FloatingPointError(
        f'{name}: {metric} is {row[metric]} at step {step}; the checkpoint'
        ' before it is intact. Lower the learning rate, or look for the first'
        ' non-finite value with JAX_DEBUG_NANS=1'
      )


def _headline(row: dict[str, float]) -> dict[str, str]:
  shown = ('loss', 'reverse_kl', 'reward')
  return {name: f'{row[name]:.3f}' for name in shown if name in row}


def _results(stage, log, timings, programs) -> dict:
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
  teachers = set(stage.teachers.values()) - {stage.student}
  before = accuracy[stage.student, 0]
  after = accuracy[stage.student, stage.steps]
  teacher = max((accuracy[n, 0] for n in teachers), default=None)
  return dict(
    student_before=before,
    student_after=after,
    teacher=teacher,
    gap_recovered=gap_recovered(before, after, teacher),
    steps=stage.steps,
    wall_seconds=seconds,
    compile_seconds=programs.compile_seconds,
  )


def gap_recovered(
  before: float, after: float, teacher: float | None
) -> float | None:
  """(after - before) / (teacher - before); None where no gap was to close."""
  if teacher is None or teacher <= before:
    return None
  return (after - before) / (teacher - before)
