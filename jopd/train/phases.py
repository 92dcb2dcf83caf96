"""The phases of a step, compiled and placed: from prompts to an update."""

from collections.abc import Mapping
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jopd import sharding
from jopd.data.batching import PromptBatch
from jopd.losses import group_outcome
from jopd.models.lora import attach, merge
from jopd.programs import Program, bucket
from jopd.rollout.engine import decode
from jopd.rollout.slots import STOP
from jopd.train.frozen import Frozen, computes, put_in
from jopd.train.metrics import Metrics
from jopd.train.stage import Run, Stage
from jopd.train.state import TrainState
from jopd.train.step import Batch, make_gradients, make_learn, make_teach


class Answers(NamedTuple):
  """Responses to a batch of prompts, on the host; rows are prompts x group."""

  response: np.ndarray  # [B, T]
  response_length: np.ndarray  # [B]
  sampler_logp: np.ndarray  # [B, T]; zeros for a dataset's
  logp: np.ndarray  # [B, T] of the raw model; zeros for a dataset's
  end: np.ndarray  # [B] how each one ended; see rollout/slots.py
  slot_steps: np.ndarray  # decoding steps times slots, of all hosts


class Grades(NamedTuple):
  """What became of the answers, on the host; b prompts, G answers each."""

  rewards: np.ndarray | None  # [b, G]; NaN where a prompt has no reference
  keep: np.ndarray  # [b, G] bool, which are learnt from


class Phases:
  """What a step does, in the order of the methods.

  Args:
    stage: which decides every function.
    run: what all stages share.
    frozen: from `freeze`.
    shardings: of the train state.

  Attributes:
    frozen: as given.
    teacher, learner: the compiled programs behind `teach` and `learn`.
    gradients: the first half of the learner, not compiled.
  """

  def __init__(self, stage: Stage, run: Run, frozen: Frozen, shardings):
    self._stage, self._run = stage, run
    self.frozen = frozen
    student = run.models[stage.student]
    teachers = {r: run.models[name] for r, name in stage.teachers.items()}
    says = dict(say=run.say, clock=run.clock)
    self._sampler = None
    if stage.source != 'dataset':
      policy = {'student': student, **teachers}[stage.source]
      self._sampler = run.make_generate(
        policy,
        f'{stage.name}: rollout',
        group_size=stage.group_size,
        **stage.decoding,
      )
    self.teacher = Program(
      f'{stage.name}: teacher',
      make_teach(
        teachers,
        micro_batches=stage.micro_batches,
        compute_dtype=computes(run, stage.teacher_dtype),
      ),
      **says,
    )
    options = dict(
      reduction=stage.reduction,
      micro_batches=stage.micro_batches,
      temperature=stage.temperature,
      compute_dtype=run.compute_dtype,
      chunk_tokens=stage.chunk_tokens,
      vocab_size=run.vocab_size,
      gather=sharding.gather_width(run.mesh),
      attach=stage.lora and partial(attach, lora=stage.lora),
    )
    models = student, teachers, stage.make_terms
    self.gradients = make_gradients(*models, **options)
    learn = make_learn(
      *models, stage.tx, moving=stage.moving, spike=stage.spike, **options
    )
    self._merge = cache(partial(_merge, stage, run))
    self.learner = Program(
      f'{stage.name}: learner',
      learn,
      donate_argnums=0,
      # Without them the compiler may move parameters between steps.
      out_shardings=(shardings, sharding.replicated(run.mesh)),
      **says,
    )

  def respond(
    self, state: TrainState, prompts: PromptBatch, key, how
  ) -> Answers:
    """What the stage's source says to each prompt, group_size times.

    Args:
      state: whose student, or followers, may speak.
      prompts: b of them.
      key: of this step.
      how: settings of the sampler, of `Stage.sampling`.
    """
    stage = self._stage
    if stage.source == 'dataset':
      response, length = prompts.response, prompts.response_length
      nothing = np.zeros(response.shape, np.float32)
      end = np.full_like(length, STOP)
      return Answers(response, length, nothing, nothing, end, np.int32(0))
    if stage.source == 'student':
      policy = self.student(state, self._run.compute_dtype)
    else:
      policy = self.teachers(state)[stage.source]
    rollout = self._sampler(
      policy,
      prompts.prompt,
      prompts.prompt_length,
      key,
      **how,
    )
    fields = [getattr(rollout, name) for name in Answers._fields]
    return Answers(*sharding.local_rows(fields))

  def grade(self, prompts: PromptBatch, answers: Answers) -> Grades:
    """The reward of each answer, and whether it is learnt from."""
    groups = len(prompts.examples), self._stage.group_size
    rewards = None
    if self._stage.source != 'dataset':
      examples = [x for x in prompts.examples for _ in range(groups[1])]
      texts = decode(self._run.tokenizer, answers)
      rewards = np.array(
        [
          # Without a reference it can be learnt from, but not graded.
          np.nan if example.answer is None else self._run.grade(text, example)
          for text, example in zip(texts, examples, strict=True)
        ],
        np.float32,
      ).reshape(groups)
    lengths = answers.response_length.reshape(groups)
    keep = self._stage.select(rewards, lengths, answers.end.reshape(groups))
    return Grades(rewards, keep)

  def measure(self, answers: Answers, grades: Grades) -> Metrics:
    """Length of the responses; what became of them if they were sampled."""
    rows = len(answers.response)
    measured = {'response_length': (np.sum(answers.response_length), rows)}
    if self._stage.source != 'dataset':
      graded = grades.rewards[~np.isnan(grades.rewards[:, 0])]
      measured['reward'] = (np.sum(graded), graded.size)
      measured['truncated'] = (np.sum(answers.end != STOP), rows)
      measured['kept'] = (np.sum(grades.keep), rows)
      if self._stage.group_size > 1:
        # Others have no advantage to teach.
        mixed = np.ptp(graded, axis=1) > 0
        measured['mixed_groups'] = (np.sum(mixed), len(mixed))
    local = np.array(list(measured.values()), np.float64)
    total = sharding.from_hosts(local).sum(axis=0)
    measured = {n: tuple(x) for n, x in zip(measured, total, strict=True)}
    tokens, _ = measured['response_length']
    # Of all tokens that the slots could have written.
    return measured | {'slot_occupancy': (tokens, int(answers.slot_steps))}

  def place(
    self, prompts: PromptBatch, answers: Answers, grades: Grades
  ) -> list[Batch]:
    """The learner's input on the mesh, for each update whole groups of it."""
    group = lambda rows, length: (
      self._group(self._cut(length, rows)),
      self._group(length),
    )
    prompt, prompt_length = group(prompts.prompt, prompts.prompt_length)
    cut = partial(self._cut, answers.response_length)
    by_student = self._stage.source == 'student'
    outcome = None
    if self._stage.reads_rewards:
      outcome = jax.device_get(group_outcome(jnp.asarray(grades.rewards)))
    batch = Batch(
      prompt=prompt,
      prompt_length=prompt_length,
      teacher_prompts={
        role: group(*self._read(role, prompts)) for role in self._stage.teachers
      },
      response=cut(answers.response),
      mask=cut(self._mask(answers, grades)),
      sampler_logp=cut(answers.sampler_logp),
      rollout_logp=cut(answers.logp) if by_student else None,
      outcome=outcome,
    )
    where = sharding.batch_sharding(self._run.mesh)
    parts = range(self._stage.updates)
    # Cut on the mesh they would travel.
    return [
      sharding.put(jax.tree.map(partial(self._part, i), batch), where)
      for i in parts
    ]

  def student(self, state: TrainState, dtype=jnp.float32) -> dict:
    """All parameters of the student now, adapters added to their matrices.

    Without adapters those of the state, float32 whatever the dtype.
    """
    if self.frozen.base is None:
      return state.params
    return self._merge(jnp.dtype(dtype))(self.frozen.base, state.params)

  def teachers(self, state: TrainState) -> dict[str, dict]:
    """Role -> parameters of that teacher now, on the devices."""
    frozen = self.frozen.teachers
    if self._stage.teacher_memory:
      frozen = put_in(frozen, 'device')
    return frozen | state.followers

  def teach(self, state: TrainState, batch: Batch):
    """Every teacher's hidden states of the responses."""
    if not self._stage.teachers:
      return {}
    return jax.block_until_ready(self.teacher(self.teachers(state), batch))

  def learn(self, state: TrainState, hidden, batch: Batch, paced=None):
    """The next state, and metrics on the host. The state is consumed."""
    state, metrics = self.learner(
      state,
      self.frozen.teachers,
      hidden,
      batch,
      self.frozen.base,
      self.scalars(paced),
    )
    metrics = jax.device_get(metrics)
    if self._stage.source == 'dataset':
      del metrics['sampler_logp']  # nobody sampled
    return state, metrics

  def scalars(self, paced: Mapping[str, float] | None) -> dict[str, jax.Array]:
    """Paced scalars as the learner reads them, on the mesh."""
    own = {name: np.float32(x) for name, x in (paced or {}).items()}
    return sharding.put(own, sharding.replicated(self._run.mesh))

  def _read(self, role: str, prompts: PromptBatch):
    if role in self._stage.contexts:
      return self._stage.contexts[role](prompts)
    return prompts.prompt, prompts.prompt_length

  def _mask(self, answers: Answers, grades: Grades) -> np.ndarray:
    """[B, T] the tokens to learn from."""
    steps = np.arange(answers.response.shape[1])
    mask = steps[None, :] < answers.response_length[:, None]
    mask &= grades.keep.reshape(-1, 1)
    return mask & ~np.isin(answers.response, self._stage.masked_ids)

  def _part(self, part: int, rows: np.ndarray) -> np.ndarray:
    """The rows of one update: whole groups, the same on any number of hosts."""
    updates, group = self._stage.updates, self._stage.group_size
    groups = rows.reshape(-1, updates, group, *rows.shape[1:])
    return groups[:, part].reshape(-1, *rows.shape[1:])

  def _cut(self, length: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """[B, n] -> as few columns as a bucket needs that holds all hosts' rows."""
    columns = bucket(sharding.largest(length), rows.shape[1], self._run.buckets)
    return rows[:, :columns]

  def _group(self, rows: np.ndarray) -> np.ndarray:
    return np.repeat(rows, self._stage.group_size, axis=0)


def _merge(stage: Stage, run: Run, dtype: jnp.dtype) -> Program:
  """(base, adapters) -> all parameters of the student, as arrays."""
  model = run.models[stage.student]
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  return Program(
    f'{stage.name}: merging in {dtype.name}',
    lambda base, own: merge(attach(base, own, stage.lora), dtype),
    out_shardings=sharding.param_shardings(run.mesh, model.axes, shapes),
    say=run.say,
    clock=run.clock,
  )
