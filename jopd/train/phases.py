"""The phases of a step, compiled and placed: respond, measure, teach, learn."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jopd import sharding
from jopd.data.batching import PromptBatch
from jopd.programs import Program, bucket
from jopd.rollout.engine import decode
from jopd.rollout.slots import STOP
from jopd.train.metrics import Metrics, means
from jopd.train.stage import Run, Stage
from jopd.train.state import TrainState
from jopd.train.step import Batch, make_learn, make_teach


class Answers(NamedTuple):
  """Responses to a batch of prompts, on the host; rows are prompts x group."""

  response: np.ndarray  # [B, T]
  response_length: np.ndarray  # [B]
  sampler_logp: np.ndarray  # [B, T]; zeros for a dataset's
  logp: np.ndarray  # [B, T] of the raw model; zeros for a dataset's
  end: np.ndarray  # [B] how each one ended; see rollout/slots.py
  slot_steps: np.ndarray  # decoding steps times slots, of all hosts


class Phases:
  """What a step does, in the order of the methods.

  Args:
    stage: which decides every function.
    run: what all stages share.
    frozen: role -> parameters of that teacher.
    shardings: of the train state.
  """

  def __init__(self, stage: Stage, run: Run, frozen: dict, shardings):
    self._stage, self._run, self._frozen = stage, run, frozen
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
    self._teach = Program(
      f'{stage.name}: teacher',
      make_teach(teachers, micro_batches=stage.micro_batches),
      **says,
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
      gather=sharding.gather_width(run.mesh),
    )
    self._learn = Program(
      f'{stage.name}: learner',
      learn,
      donate_argnums=0,
      # Without them the compiler may move parameters between steps.
      out_shardings=(shardings, sharding.replicated(run.mesh)),
      **says,
    )

  def respond(self, state: TrainState, prompts: PromptBatch, key) -> Answers:
    """What the stage's source says to each prompt, group_size times."""
    stage = self._stage
    if stage.source == 'dataset':
      response, length = prompts.response, prompts.response_length
      nothing = np.zeros(response.shape, np.float32)
      end = np.full_like(length, STOP)
      return Answers(response, length, nothing, nothing, end, np.int32(0))
    policies = {'student': state.params, **self._frozen}
    rollout = self._sampler(
      policies[stage.source],
      prompts.prompt,
      prompts.prompt_length,
      key,
      **stage.sampling,
    )
    fields = [getattr(rollout, name) for name in Answers._fields]
    return Answers(*sharding.local_rows(fields))

  def measure(self, prompts: PromptBatch, answers: Answers) -> Metrics:
    """Length of the responses; reward and truncation if they were sampled."""
    rows = len(answers.response)
    measured = {'response_length': (np.sum(answers.response_length), rows)}
    if self._stage.source != 'dataset':
      group = range(self._stage.group_size)
      examples = [example for example in prompts.examples for _ in group]
      texts = decode(self._run.tokenizer, answers)
      # A row without a reference can be learnt from, but not graded.
      rewards = [
        self._run.grade(text, example)
        for text, example in zip(texts, examples, strict=True)
        if example.answer is not None
      ]
      measured['reward'] = (sum(rewards), len(rewards))
      measured['truncated'] = (np.sum(answers.end != STOP), rows)
    local = np.array(list(measured.values()), np.float64)
    total = sharding.from_hosts(local).sum(axis=0)
    measured = {n: tuple(x) for n, x in zip(measured, total, strict=True)}
    tokens, _ = measured['response_length']
    # Of all tokens that the slots could have written.
    return measured | {'slot_occupancy': (tokens, int(answers.slot_steps))}

  def place(self, prompts: PromptBatch, answers: Answers) -> Batch:
    """The learner's input on the mesh: what each model reads, and responses."""
    group = lambda rows, length: (
      self._group(self._cut(length, rows)),
      self._group(length),
    )
    prompt, prompt_length = group(prompts.prompt, prompts.prompt_length)
    cut = partial(self._cut, answers.response_length)
    by_student = self._stage.source == 'student'
    batch = Batch(
      prompt=prompt,
      prompt_length=prompt_length,
      teacher_prompts={
        role: group(*self._read(role, prompts)) for role in self._stage.teachers
      },
      response=cut(answers.response),
      response_length=answers.response_length,
      sampler_logp=cut(answers.sampler_logp),
      rollout_logp=cut(answers.logp) if by_student else None,
    )
    return sharding.put(batch, sharding.batch_sharding(self._run.mesh))

  def teach(self, batch: Batch):
    """Every teacher's hidden states of the responses."""
    if not self._frozen:
      return {}
    return jax.block_until_ready(self._teach(self._frozen, batch))

  def learn(self, state: TrainState, hidden, batch: Batch):
    """The next state, and metrics as host floats. The state is consumed."""
    state, metrics = self._learn(state, self._frozen, hidden, batch)
    row = means(metrics)
    if self._stage.source == 'dataset':
      del row['sampler_logp']  # nobody sampled
    return state, row

  def _read(self, role: str, prompts: PromptBatch):
    if role in self._stage.contexts:
      return self._stage.contexts[role](prompts)
    return prompts.prompt, prompts.prompt_length

  def _cut(self, length: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """[B, n] -> as few columns as a bucket needs that holds all hosts' rows."""
    columns = bucket(sharding.largest(length), rows.shape[1], self._run.buckets)
    return rows[:, :columns]

  def _group(self, rows: np.ndarray) -> np.ndarray:
    return np.repeat(rows, self._stage.group_size, axis=0)


def freeze(stage: Stage, run: Run, params: dict[str, dict]) -> dict[str, dict]:
  """Each role's parameters, as they are now, in the dtype that they run in.

  A student that teaches itself is copied: its own state will be donated.
  """
  own = lambda p: jnp.copy(p).astype(run.compute_dtype)
  cast = lambda p: p.astype(run.compute_dtype)
  return {
    role: jax.tree.map(own if name == stage.student else cast, params[name])
    for role, name in stage.teachers.items()
  }
