"""What the models of a stage write and score, on a few of its prompts."""

from collections.abc import Callable, Mapping
from functools import partial
import logging
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int
import numpy as np

from jopd import sharding
from jopd.compilation import Program
from jopd.data.batching import PromptBatch
from jopd.data.examples import Example
from jopd.doctor import token_statistics
from jopd.doctor.token_statistics import Readings, TermGradient
from jopd.evaluate import statistics
from jopd.losses.token_stats import TOP, Row, group_reward_stats
from jopd.rewards import Response, Reward
from jopd.rollout.continuous_batching import STOP
from jopd.rollout.engine import responses as rollout_responses
from jopd.rollout.sampler import Rollout
from jopd.rollout.score import score
from jopd.train.callbacks.base import initial_scalars
from jopd.train.stage import Run, Stage

_log = logging.getLogger(__name__)
_MAX_GROUP = 4  # responses to a prompt
_MAX_PRIVILEGES = 8  # that a teacher reads in turn, the example's own included
_PREFIXES = (0.25, 0.5, 0.75)  # fractions of the responses of the student


class GradedResponses(NamedTuple):
  """Responses and their rewards, on the host.

  Attributes:
    response: [B, T] ids, 0 beyond the length.
    response_length: [B].
    truncated: [B], True if no stop token ended it.
    reward: [B]; NaN if the example cannot be graded.
  """

  response: Int[np.ndarray, 'B T']
  response_length: Int[np.ndarray, ' B']
  truncated: Bool[np.ndarray, ' B']
  reward: Float[np.ndarray, ' B']

  @property
  def num_correct(self) -> int:
    return int(np.sum(self.reward == 1))

  @property
  def num_graded(self) -> int:
    return int(np.sum(~np.isnan(self.reward)))

  @property
  def accuracy(self) -> float:
    """Fraction of the graded responses that is correct; NaN without any."""
    return self.num_correct / self.num_graded if self.num_graded else math.nan


def grade(
  rollout,
  prompts: PromptBatch,
  reward: Callable[[Response, Example], Reward],
  tokenizer,
  *,
  prefix: GradedResponses | None = None,
  prefix_length: Int[np.ndarray, ' B'] | None = None,
) -> GradedResponses:
  """Grades the responses of a rollout.

  Args:
    rollout: of `rollout.engine.make_generate`, on the host.
    prompts: B of them.
    reward: of a response to an example.
    tokenizer: of transformers.
    prefix: responses that the rollout continues: their first `prefix_length`
      tokens are put before its own, and graded with them.
    prefix_length: [B].
  """
  response, length = rollout.response, rollout.response_length
  if prefix is not None:
    width = response.shape[1]
    rows = [
      np.concatenate([old[:n], new])[:width]
      for old, n, new in zip(
        prefix.response, prefix_length, response, strict=True
      )
    ]
    response, length = np.stack(rows), prefix_length + length
  rollout = rollout._replace(response=response, response_length=length)
  rewards = [
    reward(response, example).value
    for response, example in zip(
      rollout_responses(tokenizer, rollout, prompts.messages),
      prompts.examples,
      strict=True,
    )
  ]
  return GradedResponses(
    response, length, rollout.end_reason != STOP, np.array(rewards)
  )


def add_prefix(
  prompt: Int[np.ndarray, 'B P'],
  prompt_length: Int[np.ndarray, ' B'],
  responses: GradedResponses,
  fraction: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Prompts followed by the first tokens of their responses.

  Args:
    prompt: [B, P] ids, right-padded.
    prompt_length: [B].
    responses: B of them.
    fraction: of each response, below 1, rounded down: never its stop token.

  Returns:
    prompt [B, P + T], prompt_length [B], and prefix_length [B], the number of
    tokens of the response.
  """
  prefix_length = (fraction * responses.response_length).astype(np.int32)
  wide = np.pad(prompt, ((0, 0), (0, responses.response.shape[1])))
  for row, start, n, response in zip(
    wide, prompt_length, prefix_length, responses.response, strict=True
  ):
    row[start : start + n] = response[:n]
  return wide, (prompt_length + prefix_length).astype(np.int32), prefix_length


def difference(
  first: GradedResponses, second: GradedResponses
) -> tuple[float, float, float]:
  """Accuracy of the first minus that of the second, with a 95 % interval.

  Newcombe's interval, from two of Wilson's: unlike the normal one it has a
  width when all or none are correct.

  Returns:
    (difference, low, high); NaN if one of the two was not graded.

  References: R. G. Newcombe, Statistics in Medicine 17 (1998) 873-890, method
    10.
  """
  if not (first.num_graded and second.num_graded):
    return math.nan, math.nan, math.nan
  p, q = first.accuracy, second.accuracy
  p_low, p_high = statistics.wilson_interval(
    first.num_correct, first.num_graded
  )
  q_low, q_high = statistics.wilson_interval(
    second.num_correct, second.num_graded
  )
  return (
    p - q,
    p - q - math.hypot(p - p_low, q_high - q),
    p - q + math.hypot(p_high - p, q - q_low),
  )


def remaining_headroom(
  from_prompt: float, from_prefix: float, student: float
) -> float:
  """The part of a teacher's headroom that remains after the student's prefix.

  (from_prefix - student) / (from_prompt - student): 1 if the teacher completes
  the prefix as well as it answers the prompt, 0 if the completions are no
  better than those of the student.

  Args:
    from_prompt: accuracy of the teacher alone.
    from_prefix: accuracy of the teacher's completions of the student's
      prefixes.
    student: accuracy of the responses that the prefixes are cut from.

  Returns:
    The fraction; NaN without headroom.

  References: Li et al., Rethinking On-Policy Distillation, arXiv 2604.13016,
    section 4.6: the gain over the student is .37, .27, .15, .02 after 1, 4, 8,
    16 thousand tokens, and training at such lengths begins to collapse.

  Example:
    >>> remaining_headroom(0.75, 0.375, 0.25)
    0.25
  """
  headroom = from_prompt - student
  return (from_prefix - student) / headroom if headroom > 0 else math.nan


class TeacherObservations(NamedTuple):
  """What was observed of one teacher.

  Attributes:
    alone: its greedy responses.
    after: fraction of the student's response -> its completions of this prefix.
    repeats: largest difference of its hidden states when it scores twice.
    readings: [B, T] on the student's responses, of the 16 most likely ids.
    on_support: the same for the number of ids that the loss reads, if it has a
      support.
    privilege: information and distance of `token_statistics.privilege`, [B, T]
      each; None if the teacher reads the prompt of the student.
  """

  alone: GradedResponses
  after: Mapping[float, GradedResponses]
  repeats: float
  readings: Readings
  on_support: Readings | None
  privilege: tuple[np.ndarray, np.ndarray] | None


class Observations(NamedTuple):
  """What was observed of a stage.

  Attributes:
    greedy: greedy responses of the student.
    samples: its sampled responses, as many as a group has; all that is scored
      is the first of them.
    mask: [B, T] of the first, True counts.
    sampler_gap: log-probs when sampling minus when scoring, nats, of each token
      that counts.
    gradients: of each term of the loss.
    teachers: by role.
  """

  greedy: GradedResponses
  samples: list[GradedResponses]
  mask: np.ndarray
  sampler_gap: np.ndarray
  gradients: Mapping[str, TermGradient]
  teachers: Mapping[str, TeacherObservations]


class Examination:
  """Runs the models of one stage, once, on a few of its prompts.

  Args:
    stage: has teachers; its iterator is at its beginning.
    run: what all stages share.
    params: model name -> parameters on the mesh, at the start of the stage.
    prompts: most prompts to take; rounded to what the mesh divides.
    support: number of ids that the loss of the stage reads; None for all.

  Attributes:
    prompts: those that were taken.
  """

  def __init__(
    self,
    stage: Stage,
    run: Run,
    params: Mapping[str, dict],
    *,
    prompts: int,
    support: int | None,
  ):
    self._stage, self._run, self._support = stage, run, support
    cast = lambda p: p.astype(run.compute_dtype)
    self._params = {n: jax.tree.map(cast, params[n]) for n in params}
    rows = sharding.batch_sharding(run.mesh)
    self._put = partial(sharding.make_global_array, sharding=rows)
    self.prompts = _take(stage, prompts, sharding.batch_parts(run.mesh))
    self._key = jax.random.fold_in(run.key, stage.index)
    names = {stage.student.model, *stage.teachers.models.values()}
    self._generate = {
      name: run.make_generate(
        run.make_policy(run.models[name]), f'{name}: rollout'
      )
      for name in names
    }
    self._score = {
      name: Program(f'{name}: score', partial(score, run.models[name]))
      for name in names
    }
    self._controlled = initial_scalars(stage, run)

  def observe(self) -> Observations:
    """Responses of all models, and the teachers' scores of the student's."""
    stage, name = self._stage, self._stage.student.model
    read = self.prompts.prompt, self.prompts.prompt_length
    # As in the first step, but up to the length limit of the run.
    sampling = dict(stage.rollouts.sampling(0, self._controlled))
    del sampling['max_new_tokens']
    greedy = self._grade(self._sample(name, *read, temperature=0.0))
    rollouts = [
      self._sample(name, *read, seed=seed, **sampling)
      for seed in range(min(stage.rollouts.group_size, _MAX_GROUP))
    ]
    rollout = rollouts[0]
    mask = _mask(rollout)
    student = self._hidden(name, *read, rollout), self._head(name)
    teachers = {
      role: (
        self._hidden(teacher, *self._read(role, self.prompts), rollout),
        self._head(teacher),
      )
      for role, teacher in stage.teachers.models.items()
    }
    samples = [self._grade(rollout) for rollout in rollouts]
    observed = {
      role: self._observe_teacher(role, student, teacher, rollout, samples[0])
      for role, teacher in teachers.items()
    }
    logp = next(iter(observed.values())).readings.student_logp
    return Observations(
      greedy=greedy,
      samples=samples,
      mask=mask,
      sampler_gap=(rollout.logp - logp)[mask].astype(np.float64),
      gradients=self._gradients(student, teachers, rollout, samples),
      teachers=observed,
    )

  def _observe_teacher(
    self, role: str, student, teacher, rollout: Rollout, responses
  ) -> TeacherObservations:
    name = self._stage.teachers.models[role]
    read = self._read(role, self.prompts)
    again = self._hidden(name, *read, rollout)
    return TeacherObservations(
      *self._completed(name, *read, responses),
      # NaN if a number is not finite.
      repeats=float(jnp.max(jnp.abs(teacher[0] - again))),
      readings=self._readings(student, teacher, rollout, TOP),
      on_support=self._support
      and self._readings(student, teacher, rollout, self._support),
      privilege=self._privilege(role, student, rollout),
    )

  def _read(self, role: str, prompts: PromptBatch):
    """What a teacher reads: ids [B, P'] and lengths [B]."""
    if role in self._stage.teachers.contexts:
      return self._stage.teachers.contexts[role](prompts)
    return prompts.prompt, prompts.prompt_length

  def _head(self, name: str) -> jax.Array:
    head = self._run.models[name].head(self._params[name])
    return sharding.gather_width(self._run.mesh)(head)

  def _sample(self, name, prompt, length, *, seed=0, **settings):
    """One response to each prompt, as a Rollout on the host."""
    key = jax.random.fold_in(self._key, seed)
    rollout = self._generate[name](
      self._params[name], prompt, length, key, **settings
    )
    return sharding.local_rows(rollout)

  def _grade(self, rollout: Rollout, **prefix) -> GradedResponses:
    return grade(
      rollout, self.prompts, self._run.reward, self._run.tokenizer, **prefix
    )

  def _completed(self, name: str, prompt, length, responses: GradedResponses):
    """Greedy responses of a teacher: alone, and after each prefix."""
    completed = []
    # The prefix of length 0 is the prompt alone, in the same program.
    for fraction in (0.0, *_PREFIXES):
      longer, lengths, prefix_length = add_prefix(
        prompt, length, responses, fraction
      )
      rollout = self._sample(
        name,
        longer,
        lengths,
        max_new_tokens=self._run.max_new_tokens - prefix_length,
        temperature=0.0,
      )
      completed.append(
        self._grade(rollout, prefix=responses, prefix_length=prefix_length)
      )
    alone, *after = completed
    return alone, dict(zip(_PREFIXES, after, strict=True))

  def _hidden(self, name: str, prompt, length, rollout: Rollout) -> jax.Array:
    """The hidden states [B, T, D] with which a model scores the responses."""
    arrays = self._put((prompt, length, rollout.response))
    return self._score[name](self._params[name], *arrays)

  def _readings(self, student, teacher, rollout: Rollout, k: int):
    """Statistics of each token, on the host."""
    vocab = self._run.vocab_size
    read = jax.jit(
      partial(
        token_statistics.read,
        vocab_size=vocab,
        k=min(k, vocab),
        chunk_tokens=self._stage.loss.chunk_tokens,
      )
    )
    arrays = self._put((rollout.response, _mask(rollout)))
    return jax.tree.map(sharding.whole, read(student, teacher, *arrays))

  def _privilege(self, role: str, student, rollout: Rollout):
    """Information and distance, [B, T] each; None without a context.

    NaN if the privilege of no other example fits.
    """
    if role not in self._stage.teachers.contexts:
      return None
    name, count = self._stage.teachers.models[role], len(self.prompts.examples)
    hidden = []
    for shift in range(count):
      try:
        read = self._read(role, _swapped(self.prompts, shift))
      except ValueError:  # too long
        continue
      hidden.append(self._hidden(name, *read, rollout))
      if len(hidden) == _MAX_PRIVILEGES:
        break
    if len(hidden) < 2:
      return (np.full(rollout.response.shape, np.nan),) * 2
    measure = jax.jit(
      partial(
        token_statistics.privilege,
        vocab_size=self._run.vocab_size,
        chunk_tokens=self._stage.loss.chunk_tokens,
      )
    )
    (mask,) = self._put((_mask(rollout),))
    both = measure(student, jnp.stack(hidden), self._head(name), mask)
    return jax.tree.map(sharding.whole, both)

  def _gradients(self, student, teachers, rollout: Rollout, samples):
    """Gradient norms of each term, as floats."""
    stage, row = self._stage, Row()
    if stage.loss.reads.reward:
      rewards = np.stack([graded.reward for graded in samples], axis=1)
      groups = group_reward_stats(jnp.asarray(rewards, jnp.float32))
      first = lambda x: np.asarray(x).reshape(rewards.shape)[:, 0]
      row = jax.tree.map(first, groups)
    index = np.arange(len(self.prompts.examples), dtype=np.int32)
    zeros = np.zeros_like(index)
    row = row._replace(group=index, source=zeros, domain=zeros)
    measure = jax.jit(
      partial(
        token_statistics.term_gradients,
        terms=stage.loss.terms(stage.loss.scalars(0, self._controlled)),
        aggregation=stage.loss.aggregation,
        chunk_tokens=stage.loss.chunk_tokens,
        temperature=stage.loss.temperature,
        vocab_size=self._run.vocab_size,
      )
    )
    arrays = self._put((rollout.response, rollout.sampler_logp, _mask(rollout)))
    gradients = measure(student, teachers, *arrays, row=self._put(row))
    return jax.tree.map(float, gradients)


def _mask(rollout) -> np.ndarray:
  steps = np.arange(rollout.response.shape[1])
  return steps < rollout.response_length[:, None]


def _swapped(prompts: PromptBatch, shift: int) -> PromptBatch:
  """The examples with everything but their prompts from other examples."""
  examples = prompts.examples
  others = examples[shift:] + examples[:shift]
  swapped = [
    other._replace(id=example.id, messages=example.messages)
    for example, other in zip(examples, others, strict=True)
  ]
  return prompts._replace(examples=swapped)


def _take(stage: Stage, limit: int, parts: int) -> PromptBatch:
  """Different prompts of the stage, as many as the mesh divides."""
  rows = {}  # id -> batch and row
  while len(rows) < max(limit, parts):
    batch, before = next(stage.prompts.batches), len(rows)
    rows |= {n: (batch, i) for i, n in enumerate(batch.ids) if n not in rows}
    if len(rows) == before:
      break  # the source has no more
  rows = list(rows.values())
  # A source smaller than the mesh is repeated.
  count = max(parts, min(limit, len(rows)) // parts * parts)
  rows = [rows[i % len(rows)] for i in range(count)]
  fields = ('prompt', 'prompt_length', 'response', 'response_length')
  return PromptBatch(
    ids=[batch.ids[i] for batch, i in rows],
    examples=[batch.examples[i] for batch, i in rows],
    messages=[batch.messages[i] for batch, i in rows],
    **{f: np.stack([getattr(b, f)[i] for b, i in rows]) for f in fields},
  )
