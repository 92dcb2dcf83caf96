"""The examination of a stage that distils: who is run, on what."""

from collections.abc import Mapping
from functools import partial
import logging

import jax
import jax.numpy as jnp
import numpy as np

from jopd import sharding
from jopd.compilation import Program
from jopd.data.batching import PromptBatch
from jopd.doctor import answers, token_statistics
from jopd.doctor.answers import Answers
from jopd.doctor.rules import OfTeacher, Seen
from jopd.losses.token_stats import TOP, Row, group_reward_stats
from jopd.rollout.sampler import Rollout
from jopd.rollout.score import score
from jopd.train.controllers import Pace
from jopd.train.stage import Run, Stage

_log = logging.getLogger(__name__)
_GROUP = 4  # most responses to a prompt
_PRIVILEGES = 8  # in the place of an example's own, its own included
_CUTS = (0.25, 0.5, 0.75)  # shares of the student's responses


class Examination:
  """Runs the models of one stage, once, on a few of its prompts.

  Args:
    stage: that has teachers; its iterator is at its beginning.
    run: what all stages share.
    params: model name -> parameters on the mesh, as the stage begins.
    prompts: how many to take, at most; rounded to what the mesh divides.
    support: k of the stage's loss; None where it reads the whole vocabulary.

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
    self._put = partial(sharding.put, sharding=rows)
    self.prompts = _take(stage, prompts, sharding.batch_parts(run.mesh))
    self._key = jax.random.fold_in(run.key, stage.index)
    names = {stage.student.model, *stage.teachers.models.values()}
    self._generate = {
      name: run.make_generate(run.models[name], f'{name}: rollout')
      for name in names
    }
    self._score = {
      name: Program(
        f'{name}: score', partial(score, run.models[name]), say=_log.info
      )
      for name in names
    }

  def observe(self) -> Seen:
    """What the models say, and what they think of it."""
    stage, name = self._stage, self._stage.student.model
    own = self.prompts.prompt, self.prompts.prompt_length
    # As at first, but whole: a limit is no fault of the answers.
    how = stage.rollouts.sampling(0, Pace(stage.controllers).values()) | {
      'limit': None
    }
    greedy = self._grade(self._ask(name, *own, temperature=0.0))
    rollouts = [
      self._ask(name, *own, seed=seed, **how)
      for seed in range(min(stage.rollouts.group_size, _GROUP))
    ]
    # The states of all that follows: the student's first responses.
    rollout = rollouts[0]
    mask = _mask(rollout)
    student = self._hidden(name, *own, rollout), self._head(name)
    teachers = {
      role: (
        self._hidden(teacher, *self._read(role, self.prompts), rollout),
        self._head(teacher),
      )
      for role, teacher in stage.teachers.models.items()
    }
    seen = {
      role: self._see(role, student, teacher, rollout)
      for role, teacher in teachers.items()
    }
    logp = next(iter(seen.values())).readings.student_logp
    samples = [self._grade(rollout) for rollout in rollouts]
    return Seen(
      greedy=greedy,
      samples=samples,
      mask=mask,
      sampler_gap=(rollout.logp - logp)[mask].astype(np.float64),
      pulls=self._pulls(student, teachers, rollout, samples),
      teachers=seen,
    )

  def _see(self, role: str, student, teacher, rollout: Rollout) -> OfTeacher:
    """What is observed of one teacher."""
    name = self._stage.teachers.models[role]
    read = self._read(role, self.prompts)
    again = self._hidden(name, *read, rollout)
    return OfTeacher(
      # First a share of nothing, so that all are answered by one program.
      *self._continued(name, *read, self._grade(rollout)),
      # NaN where a number is not finite.
      repeats=float(jnp.max(jnp.abs(teacher[0] - again))),
      readings=self._readings(student, teacher, rollout, TOP),
      on_support=self._support
      and self._readings(student, teacher, rollout, self._support),
      privilege=self._privilege(role, student, rollout),
    )

  def _read(self, role: str, prompts: PromptBatch):
    """What that teacher reads: ids [B, P'] and lengths [B]."""
    if role in self._stage.teachers.contexts:
      return self._stage.teachers.contexts[role](prompts)
    return prompts.prompt, prompts.prompt_length

  def _head(self, name: str) -> jax.Array:
    head = self._run.models[name].head(self._params[name])
    return sharding.gather_width(self._run.mesh)(head)

  def _ask(self, name, prompt, length, *, seed=0, limit=None, **settings):
    """One response to each prompt, as a Rollout on the host."""
    key = jax.random.fold_in(self._key, seed)
    rollout = self._generate[name](
      self._params[name], prompt, length, key, limit=limit, **settings
    )
    return sharding.local_rows(rollout)

  def _grade(self, rollout: Rollout, **prefix) -> Answers:
    return answers.graded(
      rollout,
      self.prompts,
      self._run.reward,
      self._run.tokenizer,
      **prefix,
    )

  def _continued(self, name: str, prompt, length, given: Answers):
    """The teacher's greedy answers: alone, and where the student has begun."""
    room = self._run.max_new_tokens
    found = []
    for share in (0.0, *_CUTS):
      longer, lengths, kept = answers.cut(prompt, length, given, share)
      rollout = self._ask(
        name, longer, lengths, limit=room - kept, temperature=0.0
      )
      found.append(self._grade(rollout, prefix=given, prefix_length=kept))
    alone, *rest = found
    return alone, dict(zip(_CUTS, rest, strict=True))

  def _hidden(self, name: str, prompt, length, rollout: Rollout) -> jax.Array:
    """The hidden states [B, T, D] with which a model scores the responses."""
    arrays = self._put((prompt, length, rollout.response))
    return self._score[name](self._params[name], *arrays)

  def _readings(self, student, teacher, rollout: Rollout, k: int):
    """Numbers of each token, on the host."""
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
    """Information and distance, [B, T] each; None where all read the same.

    NaN where no other example's privilege fits in the place of the own one.
    """
    if role not in self._stage.teachers.contexts:
      return None
    name, count = self._stage.teachers.models[role], len(self.prompts.examples)
    hidden = []
    for shift in range(count):
      try:
        read = self._read(role, _swapped(self.prompts, shift))
      except ValueError:  # too long in this place
        continue
      hidden.append(self._hidden(name, *read, rollout))
      if len(hidden) == _PRIVILEGES:
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
    found = measure(student, jnp.stack(hidden), self._head(name), mask)
    return jax.tree.map(sharding.whole, found)

  def _pulls(self, student, teachers, rollout: Rollout, samples):
    """Each term's pull, as host floats."""
    stage, row = self._stage, Row()
    if stage.loss.reads.reward:
      rewards = np.stack([graded.reward for graded in samples], axis=1)
      groups = group_reward_stats(jnp.asarray(rewards, jnp.float32))
      first = lambda x: np.asarray(x).reshape(rewards.shape)[:, 0]
      row = jax.tree.map(first, groups)
    number = np.arange(len(self.prompts.examples), dtype=np.int32)
    nobody = np.zeros_like(number)
    row = row._replace(group=number, source=nobody, domain=nobody)
    pull = jax.jit(
      partial(
        token_statistics.pulls,
        terms=stage.loss.terms(
          stage.loss.scalars(0, Pace(stage.controllers).values())
        ),
        reduction=stage.loss.aggregation,
        chunk_tokens=stage.loss.chunk_tokens,
        temperature=stage.loss.temperature,
        vocab_size=self._run.vocab_size,
      )
    )
    arrays = self._put((rollout.response, rollout.sampler_logp, _mask(rollout)))
    found = pull(student, teachers, *arrays, row=self._put(row))
    return jax.tree.map(float, found)


def _mask(rollout) -> np.ndarray:
  steps = np.arange(rollout.response.shape[1])
  return steps < rollout.response_length[:, None]


def _swapped(prompts: PromptBatch, shift: int) -> PromptBatch:
  """The examples with all but their prompts taken from others, for contexts."""
  examples = prompts.examples
  others = examples[shift:] + examples[:shift]
  swapped = [
    other._replace(id=own.id, messages=own.messages)
    for own, other in zip(examples, others, strict=True)
  ]
  return prompts._replace(examples=swapped)


def _take(stage: Stage, most: int, parts: int) -> PromptBatch:
  """Different prompts of the stage, as many as the mesh divides."""
  rows = {}  # name -> where it is
  while len(rows) < max(most, parts):
    batch, before = next(stage.prompts.batches), len(rows)
    rows |= {n: (batch, i) for i, n in enumerate(batch.ids) if n not in rows}
    if len(rows) == before:
      break  # the source has no more
  rows = list(rows.values())
  # A source smaller than the mesh is repeated.
  count = max(parts, min(most, len(rows)) // parts * parts)
  rows = [rows[i % len(rows)] for i in range(count)]
  fields = ('prompt', 'prompt_length', 'response', 'response_length')
  return PromptBatch(
    ids=[batch.ids[i] for batch, i in rows],
    examples=[batch.examples[i] for batch, i in rows],
    messages=[batch.messages[i] for batch, i in rows],
    **{f: np.stack([getattr(b, f)[i] for b, i in rows]) for f in fields},
  )
