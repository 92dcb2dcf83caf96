"""What a run and a stage are: made by run/build.py, run by loop.py."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jopd import losses
from jopd.data.batching import PromptBatch, PromptIterator
from jopd.data.examples import Example
from jopd.models.api import Model
from jopd.models.lora import Lora
from jopd.rewards import Response, Reward
from jopd.rollout.engine import make_generate
from jopd.rollout.sampler import Rollout
from jopd.rollout.stop_criteria import Stops
from jopd.train.metrics import Clock
from jopd.train.step import Reduction


class Run(NamedTuple):
  """What the stages of a run share."""

  models: Mapping[str, Model]
  mesh: jax.sharding.Mesh
  tokenizer: object
  stop_ids: tuple[int, ...]
  stops: Stops  # these, and the strings that end a response
  vocab_size: int  # ids from here on are padding of the embeddings
  max_response_tokens: int
  num_length_buckets: int  # sizes that batches are cut to
  compute_dtype: jnp.dtype
  reward: Callable[[Response, Example], Reward]
  evaluate: Callable[[str, dict], dict[str, float]]  # model name, params
  checkpoint: Mapping[str, int]  # every, keep
  loggers: Mapping[str, Callable]  # name -> (folder, log) -> tracker
  key: jax.Array
  clock: Clock  # seconds by phase
  say: Callable[[str], None]
  # Asked before each step: the number of a signal that wants the run to end.
  stop: Callable[[], int] = lambda: 0

  def make_generate(
    self, model: Model, name: str, **options
  ) -> Callable[..., Rollout]:
    """The engine of a model under the limits and stops of this run."""
    generate = make_generate(
      model,
      self.mesh,
      max_new_tokens=self.max_response_tokens,
      vocab_size=self.vocab_size,
      buckets=self.num_length_buckets,
      name=name,
      say=self.say,
      clock=self.clock,
      **{'compute_dtype': self.compute_dtype, **options},
    )
    return partial(generate, stops=self.stops)


class Stage(NamedTuple):
  """Who learns, from whose tokens, towards what."""

  name: str
  index: int  # among the run's stages; part of every random key
  student: str  # name of the model that learns
  lora: Lora | None  # if only adapters of it are trained
  init_from: str  # name of the model that it is a copy of at first; '' is itself
  teachers: Mapping[str, str]  # role -> name of a model
  # Role -> how that teacher follows the student; the others are frozen.
  teacher_sync: Mapping[str, Callable]
  # Who writes responses: 'student' first, then teachers' roles, 'dataset' last;
  # and how many to a prompt at most. A place in it is the origin of a row.
  sources: Mapping[str, int]
  # The key of a step -> who writes each response of its groups.
  members: Callable[[jax.Array], tuple[str, ...]]
  # Role of one teacher, or of none -> what is sampled of the student and it.
  teacher_mixing: Mapping[str, Callable]
  domains: tuple[str, ...]  # that terms name; a place in it is that of a row
  batches: PromptIterator
  # Role -> what that teacher reads, [b, P] and [b], where the student reads
  # something else.
  teacher_contexts: Mapping[str, Callable[[PromptBatch], tuple]]
  # Role -> the same where a teacher is told of the responses, [B, P] and [B]
  # from b x G attempts, and which rows had something to tell that fits, [B].
  told: Mapping[str, Callable[[PromptBatch, Sequence], tuple]]
  # (step, controlled scalars) -> terms.
  make_terms: Callable[..., Mapping[str, losses.Term]]
  reads_rewards: bool  # do the terms
  reduction: Reduction
  tx: optax.GradientTransformation
  learning_rate: Callable[[int], float]
  grad_norm_spike: float  # times the usual gradient norm from which one is not learnt
  max_consecutive_skips: int  # updates in a row that may be skipped
  steps: int  # batches of prompts
  num_minibatches: int  # of the student, on the responses to each
  group_size: int
  decoding: Mapping[str, object]  # of `make_generate`: slots, precision
  teacher_dtype: str  # what frozen teachers are kept in; see `frozen.freeze`
  teacher_memory: str  # where their layers wait: 'host', or '' on the devices
  later: frozenset[str]  # models that the stages after it use
  gradient_accumulation_steps: int
  together: int  # rows that micro-batches do not part: 1, or a group's
  # (step, controlled scalars) -> settings of the sampler: limit, temperature, ...
  sampling: Callable[[int, Mapping[str, float]], Mapping[str, float]]
  controllers: Mapping[str, Callable]  # name -> function of `pacing.py`
  # (parameters, limit) -> what the held-out prompts show.
  held_out: Callable[[dict, int | None], dict[str, float]] | None
  held_out_every: int  # steps
  # (step, controlled scalars) -> function of `replay.py`.
  replay: Callable[[int, Mapping[str, float]], Callable]
  weight_extrapolation: Callable | None  # (step, scores) -> where to look; foresight.py
  filter: Callable  # (rewards, lengths, ends) -> keep; see train/filters.py
  masked_ids: tuple[int, ...]  # tokens that are not learnt
  loss_temperature: float
  loss_chunk_tokens: int
  eval_every: int
  fingerprint: Mapping[str, object]  # what a checkpoint must agree on

  @property
  def mixed(self) -> bool:
    """Whether several sources write to one prompt."""
    return (
      sum(self.sources.values()) == self.group_size > max(self.sources.values())
    )
