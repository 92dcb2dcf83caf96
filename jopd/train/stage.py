"""What a run and a stage are made of: built by `run/`, executed by the loop."""

from collections.abc import Callable, Mapping
from functools import partial
import logging
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jopd import losses
from jopd.data.batching import PromptBatch, PromptIterator
from jopd.models.api import Model
from jopd.models.lora import Lora
from jopd.rollout.decode import Policy, make_policy
from jopd.rollout.engine import make_generate
from jopd.rollout.sampler import Rollout
from jopd.rollout.stop_criteria import Stops
from jopd.train.metrics import Clock

_log = logging.getLogger(__name__)


class Run(NamedTuple):
  """What the stages of a run share.

  Attributes:
    models: name -> model.
    mesh: that all arrays live on.
    tokenizer: of every model.
    stops: token ids and strings that end a response.
    vocab_size: ids from here on are padding of the embeddings.
    max_new_tokens: most tokens of a response.
    num_length_buckets: lengths that batches are cut to.
    compute_dtype: of rollouts, teachers and the learner's products.
    reward: (Response, Example) -> Reward; see `rewards`.
    evaluate: (model name, parameters) -> name -> accuracy.
    checkpoint: every, keep.
    loggers: name -> (folder, log) -> logger.
    key: root of the random keys of all stages.
    clock: seconds by phase.
    should_stop: () -> number of a signal that asks the run to end, or 0.
  """

  models: Mapping[str, Model]
  mesh: jax.sharding.Mesh
  tokenizer: object
  stops: Stops
  vocab_size: int
  max_new_tokens: int
  num_length_buckets: int
  compute_dtype: jnp.dtype
  reward: Callable
  evaluate: Callable[[str, dict], dict[str, float]]
  checkpoint: Mapping[str, int]
  loggers: Mapping[str, Callable]
  key: jax.Array
  clock: Clock
  should_stop: Callable[[], int] = lambda: 0

  def make_policy(self, model: Model, **options) -> Policy:
    """`rollout.decode.make_policy` with the vocabulary and dtype of the run."""
    defaults = dict(vocab_size=self.vocab_size, dtype=self.compute_dtype)
    return make_policy(model, **(defaults | options))

  def make_generate(
    self, policy: Policy, name: str, **options
  ) -> Callable[..., Rollout]:
    """`rollout.make_generate` with the lengths and stops of the run."""
    generate = make_generate(
      policy,
      self.mesh,
      max_new_tokens=self.max_new_tokens,
      num_length_buckets=self.num_length_buckets,
      name=name,
      clock=self.clock,
      **options,
    )
    return partial(generate, stops=self.stops)


class Student(NamedTuple):
  """The model that learns.

  Attributes:
    model: its name.
    init_from: name of the model that it is a copy of at first; '' is itself.
    lora: its adapters, if only these are trained.
  """

  model: str
  init_from: str = ''
  lora: Lora | None = None


class Teachers(NamedTuple):
  """The models that score the responses, by role.

  Attributes:
    models: role -> name of a model.
    sync: role -> (teacher, student, step) -> teacher, for teachers that follow
      the student; the others are frozen.
    contexts: role -> (prompts) -> ids [b, P] and lengths [b], where a teacher
      reads another prompt than the student.
    rollout_contexts: role -> (prompts, responses of each group) -> ids [B, P],
      lengths [B], and which rows had a context of their own [B]; for prompts
      that depend on the responses.
    dtype: of frozen teachers; '' is the compute dtype, 'int8' quantises.
    memory: 'host' keeps their layers in host memory; '' on the devices.
  """

  models: Mapping[str, str]
  sync: Mapping[str, Callable] = {}
  contexts: Mapping[str, Callable[[PromptBatch], tuple]] = {}
  rollout_contexts: Mapping[str, Callable] = {}
  dtype: str = ''
  memory: str = ''


class Prompts(NamedTuple):
  """What is asked.

  Attributes:
    batches: iterator over batches of prompts, with a state.
    domains: names of domains that terms select rows by; the index of a name
      is the `domain` of a row.
    held_out: examples of the data that are not trained on, encoded; None if
      none are kept apart.
  """

  batches: PromptIterator
  domains: tuple[str, ...] = ()
  held_out: PromptBatch | None = None


class Rollouts(NamedTuple):
  """Who answers, and how.

  Attributes:
    sources: name of a response source -> most responses to a prompt: 'student'
      first, then roles of teachers, 'dataset' last. The index of a name is the
      `source` of a row.
    draw: (key of the step) -> source of each response of a group.
    group_size: responses per prompt.
    sampling: (step, scalars) -> settings of the sampler: max_new_tokens,
      temperature, top_k, top_p, min_p.
    decoding: max_num_seqs, and dtype and int8 of `rollout.make_policy`.
    mixing: role of one teacher -> (student_logp, teacher_logp) -> logp [B, V]
      that is sampled from; empty for plain sampling.
    filter: (rewards, lengths, end reasons) -> keep; see `train/filters.py`.
    masked_ids: tokens that are not learnt.
  """

  sources: Mapping[str, int]
  draw: Callable[[jax.Array], tuple[str, ...]]
  group_size: int
  sampling: Callable[[int, Mapping[str, float]], dict]
  decoding: Mapping[str, object]
  mixing: Mapping[str, Callable]
  filter: Callable
  masked_ids: tuple[int, ...] = ()

  @property
  def mixed(self) -> bool:
    """Whether several sources write to one prompt."""
    counts = self.sources.values()
    return sum(counts) == self.group_size > max(counts)


class Aggregation(NamedTuple):
  """How tokens become one number, and the denominator that this needs.

  Attributes:
    reduce: (per_token [B, T], mask, count) -> scalar.
    count: (mask [B, T] of the whole batch) -> scalar.
  """

  reduce: Callable
  count: Callable


class Loss(NamedTuple):
  """What is minimised.

  Attributes:
    terms: (scalars) -> name -> `losses.Term`. All names are resolved before;
      it only puts scalars, which may be traced, where settings refer to them.
    scalars: (update, controlled) -> name -> float: values of schedules at an
      update, and of controlled settings; computed on the host.
    reads: what the terms read, `losses.Reads`.
    aggregation: of tokens.
    temperature: of student and teachers.
    chunk_tokens: tokens per chunk of the loss.
  """

  terms: Callable[[Mapping[str, float]], Mapping[str, losses.Term]]
  scalars: Callable[[int, Mapping[str, float]], dict[str, float]]
  reads: losses.Reads
  aggregation: Aggregation
  temperature: float
  chunk_tokens: int


class Update(NamedTuple):
  """How a loss becomes a step.

  Attributes:
    tx: optimizer, clipping included.
    learning_rate: (update) -> rate.
    num_minibatches: updates on the responses to each batch of prompts.
    gradient_accumulation_steps: parts of a minibatch whose gradients are added.
    rows_together: consecutive rows that stay in one part: 1, or a group's.
    grad_norm_spike: multiple of the usual gradient norm from which an update
      is skipped; 0 for no bound.
    max_consecutive_skips: skipped updates in a row that end the run.
  """

  tx: optax.GradientTransformation
  learning_rate: Callable[[int], float]
  num_minibatches: int = 1
  gradient_accumulation_steps: int = 1
  rows_together: int = 1
  grad_norm_spike: float = 0.0
  max_consecutive_skips: int = 3


class Stage(NamedTuple):
  """One stage of a run.

  Attributes:
    name: section of the config.
    index: among the stages of the run; part of every random key.
    steps: batches of prompts.
    eval_every: steps between evaluations; 0 for before and after only.
    student, teachers, prompts, rollouts, loss, update: the components.
    callbacks: name -> (setup) -> callback; see `train/callbacks.py`.
    fingerprint: what a checkpoint must agree on.
    later: models that later stages use.
  """

  name: str
  index: int
  steps: int
  eval_every: int
  student: Student
  teachers: Teachers
  prompts: Prompts
  rollouts: Rollouts
  loss: Loss
  update: Update
  callbacks: Mapping[str, Callable]
  fingerprint: Mapping[str, object]
  later: frozenset[str]
