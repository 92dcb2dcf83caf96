"""The phases of a step, compiled and placed: from prompts to an update."""

from collections.abc import Mapping
from functools import cache, partial
import logging

import jax
import jax.numpy as jnp
import numpy as np

from jopd import sharding
from jopd.compilation import Program, bucket
from jopd.data.batching import PromptBatch
from jopd.losses import rows_where
from jopd.models.lora import attach, merge
from jopd.rollout.continuous_batching import STOP
from jopd.rollout.decode import MixingTeacher
from jopd.rollout.engine import responses
from jopd.train.metrics import Metrics
from jopd.train.rollout_batch import (
  SAID,
  Answers,
  Grades,
  in_groups,
  measured,
  rows_of,
  scored_responses,
)
from jopd.train.stage import Run, Stage
from jopd.train.state import TrainState
from jopd.train.step import Batch, make_gradients, make_learn, make_teach
from jopd.train.teachers import Frozen, computes, put_in

_log = logging.getLogger(__name__)


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
    student = run.models[stage.student.model]
    teachers = {
      r: run.models[name] for r, name in stage.teachers.models.items()
    }
    says = dict(say=_log.info, clock=run.clock)
    policies = {'student': student, **teachers}
    speakers = [name for name in stage.rollouts.sources if name != 'dataset']
    beside = [
      MixingTeacher(teachers[r], blend)
      for r, blend in stage.rollouts.mixing.items()
    ]
    seconds = {'student': beside[0]} if beside else {}
    self._samplers = {
      name: run.make_generate(
        policies[name],
        f'{stage.name}: rollout' + (f' of {name}' if len(speakers) > 1 else ''),
        group_size=stage.rollouts.sources[name],
        second=seconds.get(name),
        **stage.rollouts.decoding,
      )
      for name in speakers
    }
    self.teacher = Program(
      f'{stage.name}: teacher',
      make_teach(
        teachers,
        micro_batches=stage.update.gradient_accumulation_steps,
        together=stage.update.rows_together,
        compute_dtype=computes(run, stage.teachers.dtype),
      ),
      **says,
    )
    options = dict(
      reduction=stage.loss.aggregation,
      micro_batches=stage.update.gradient_accumulation_steps,
      together=stage.update.rows_together,
      # On its own prefixes, if it writes some of a group; else they are mixed.
      stats_rows=partial(rows_where, sources=(0,))
      if stage.rollouts.mixed
      else None,
      temperature=stage.loss.temperature,
      compute_dtype=run.compute_dtype,
      chunk_tokens=stage.loss.chunk_tokens,
      vocab_size=run.vocab_size,
      gather=sharding.gather_width(run.mesh),
      attach=stage.student.lora and partial(attach, lora=stage.student.lora),
    )
    models = student, teachers, stage.loss.terms
    self.gradients = make_gradients(*models, **options)
    learn = make_learn(
      *models,
      stage.update.tx,
      moving=stage.teachers.sync,
      spike=stage.update.grad_norm_spike,
      **options,
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
    """What those whose turn it is say to each prompt.

    Args:
      state: whose student, or followers, may speak.
      prompts: b of them.
      key: of this step.
      how: settings of the sampler, of `Stage.sampling`.
    """
    members = self._stage.rollouts.draw(key)
    ask = partial(self._ask, state, prompts, key, how)
    said = {name: ask(name) for name in dict.fromkeys(members)}
    return in_groups(members, said)

  def _ask(self, state: TrainState, prompts: PromptBatch, key, how, name: str):
    """The responses of one source, in the order of the prompts."""
    if name == 'dataset':
      response, length = prompts.response, prompts.response_length
      nothing = np.zeros(response.shape, np.float32)
      end = np.full_like(length, STOP)
      return response, length, nothing, nothing, end, np.int32(0)
    if name == 'student':
      policy = self.student(state, self._run.compute_dtype)
      for role in self._stage.rollouts.mixing:
        policy = policy, self.teachers(state)[role]
      read = prompts.prompt, prompts.prompt_length
    else:
      policy, read = self.teachers(state)[name], self._read(name, prompts)
    # Else two sources of the same weights would say the same.
    place = list(self._stage.rollouts.sources).index(name)
    key = jax.random.fold_in(key, 2**32 - place) if place else key
    rollout = self._samplers[name](policy, *read, key, **how)
    return sharding.local_rows([getattr(rollout, f) for f in SAID])

  def grade(self, prompts: PromptBatch, answers: Answers) -> Grades:
    """The reward of each answer, whether it is learnt from, who is told."""
    stage = self._stage
    groups = len(prompts.examples), len(answers.members)
    rewards, told, unjudged = None, {}, 0
    if set(answers.members) != {'dataset'}:
      examples = [x for x in prompts.examples for _ in range(groups[1])]
      messages = [x for x in prompts.messages for _ in range(groups[1])]
      graded = responses(self._run.tokenizer, answers, messages)
      each = list(map(self._run.reward, graded, examples))
      rewards = np.float32([reward.value for reward in each]).reshape(groups)
      unjudged = sum(not reward.judged for reward in each)
      if stage.teachers.rollout_contexts:
        attempts = scored_responses(graded, rewards, answers.members)
        told = {
          role: tell(prompts, attempts)
          for role, tell in stage.teachers.rollout_contexts.items()
        }
    lengths = answers.response_length.reshape(groups)
    keep = stage.rollouts.filter(rewards, lengths, answers.end.reshape(groups))
    return Grades(rewards, keep, told, unjudged)

  def measure(self, answers: Answers, grades: Grades) -> Metrics:
    """What became of the answers, over all hosts; see responses.py."""
    local = measured(answers, grades, list(self._stage.rollouts.sources))
    total = sharding.from_hosts(np.array(list(local.values()))).sum(axis=0)
    found = {n: tuple(x) for n, x in zip(local, total, strict=True)}
    # Of all tokens that the slots could have written.
    sampled, _ = found['slot_occupancy']
    return found | {'slot_occupancy': (sampled, int(answers.slot_steps))}

  def pack(
    self, prompts: PromptBatch, answers: Answers, grades: Grades
  ) -> list[Batch]:
    """The learner's input on the host, for each update whole groups of it."""
    cut = partial(self._cut, answers.response_length)
    prompt, prompt_length = self._grouped(prompts.prompt, prompts.prompt_length)
    batch = Batch(
      prompt=prompt,
      prompt_length=prompt_length,
      teacher_prompts={
        role: self._cut_prompts(*grades.told[role][:2])
        if role in grades.told
        else self._grouped(*self._read(role, prompts))
        for role in self._stage.teachers.models
      },
      response=cut(answers.response),
      mask=cut(self._mask(answers, grades)),
      sampler_logp=cut(answers.sampler_logp),
      rollout_logp=cut(answers.logp) if 'student' in answers.members else None,
      row=rows_of(prompts.examples, answers, grades, self._stage),
    )
    return [
      jax.tree.map(partial(self._part, i), batch)
      for i in range(self._stage.update.num_minibatches)
    ]

  def place(self, batch: Batch, lag: int) -> Batch:
    """A part of what was packed, on the mesh.

    Args:
      batch: on the host.
      lag: updates of the student since it spoke.
    """
    lags = np.full(len(batch.prompt), lag, np.float32)
    batch = batch._replace(row=batch.row._replace(staleness=lags))
    # Cut on the mesh it would travel.
    return sharding.put(batch, sharding.batch_sharding(self._run.mesh))

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
    if self._stage.teachers.memory:
      frozen = put_in(frozen, 'device')
    return frozen | state.followers

  def teach(self, state: TrainState, batch: Batch):
    """Every teacher's hidden states of the responses."""
    if not self._stage.teachers.models:
      return {}
    return jax.block_until_ready(self.teacher(self.teachers(state), batch))

  def learn(self, state: TrainState, hidden, batch: Batch, scalars=None):
    """The next state, and metrics on the host. The state is consumed."""
    state, metrics = self.learner(
      state,
      self.frozen.teachers,
      hidden,
      batch,
      self.frozen.base,
      self.scalars(scalars),
    )
    metrics = jax.device_get(metrics)
    if 'dataset' in self._stage.rollouts.sources and batch.rollout_logp is None:
      for name in ('sampler_logp', 'ratio', 'ratio_squared'):
        del metrics[name]  # nobody sampled
    return state, metrics

  def scalars(
    self, scalars: Mapping[str, float] | None
  ) -> dict[str, jax.Array]:
    """The scalars of the terms as the learner reads them, on the mesh."""
    own = {name: np.float32(x) for name, x in (scalars or {}).items()}
    return sharding.put(own, sharding.replicated(self._run.mesh))

  def _read(self, role: str, prompts: PromptBatch):
    if role in self._stage.teachers.contexts:
      return self._stage.teachers.contexts[role](prompts)
    return prompts.prompt, prompts.prompt_length

  def _mask(self, answers: Answers, grades: Grades) -> np.ndarray:
    """[B, T] the tokens to learn from."""
    steps = np.arange(answers.response.shape[1])
    mask = steps[None, :] < answers.response_length[:, None]
    mask &= grades.keep.reshape(-1, 1)
    return mask & ~np.isin(answers.response, self._stage.rollouts.masked_ids)

  def _part(self, part: int, rows: np.ndarray) -> np.ndarray:
    """The rows of one update: whole groups, the same on any number of hosts."""
    updates, group = (
      self._stage.update.num_minibatches,
      self._stage.rollouts.group_size,
    )
    groups = rows.reshape(-1, updates, group, *rows.shape[1:])
    return groups[:, part].reshape(-1, *rows.shape[1:])

  def _cut(self, length: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """[B, n] -> as few columns as a bucket needs that holds all hosts' rows."""
    columns = bucket(
      sharding.largest(length), rows.shape[1], self._run.num_length_buckets
    )
    return rows[:, :columns]

  def _cut_prompts(self, rows: np.ndarray, length: np.ndarray):
    return self._cut(length, rows), length

  def _grouped(self, rows: np.ndarray, length: np.ndarray):
    """Prompts as often as they have responses."""
    each = partial(np.repeat, repeats=self._stage.rollouts.group_size, axis=0)
    rows, length = self._cut_prompts(rows, length)
    return each(rows), each(length)


def _merge(stage: Stage, run: Run, dtype: jnp.dtype) -> Program:
  """(base, adapters) -> all parameters of the student, as arrays."""
  model = run.models[stage.student.model]
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  return Program(
    f'{stage.name}: merging in {dtype.name}',
    lambda base, own: merge(attach(base, own, stage.student.lora), dtype),
    out_shardings=sharding.param_shardings(run.mesh, model.axes, shapes),
    say=_log.info,
    clock=run.clock,
  )
