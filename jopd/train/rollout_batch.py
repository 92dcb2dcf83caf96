"""One batch of responses, from the sampler to the learner."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
from jaxtyping import Array
import numpy as np

from jopd import sharding
from jopd.compilation import bucket
from jopd.data.examples import ScoredResponse
from jopd.losses import Row
from jopd.rewards import Response, Reward
from jopd.rollout.continuous_batching import STOP
from jopd.train import distributed
from jopd.train.metrics import Metrics


class TeacherInput(NamedTuple):
  """What a teacher reads before the responses, and what it made of them.

  Attributes:
    prompt: [B, P'] int32.
    prompt_length: [B] int32.
    hidden: [M, B / M, T, D] hidden states of the responses, M parts of the
      batch that the learner takes one after the other; None before scoring.
  """

  prompt: Array
  prompt_length: Array
  hidden: Array | None = None


class RolloutBatch(NamedTuple):
  """Responses and what is known of them: B rows, groups of G consecutive ones.

  Arrays of the host until the batch is placed on the mesh. Right-padded.

  Attributes:
    prompt: [B, P] int32, as the student reads it.
    prompt_length: [B] int32.
    response: [B, T] int32.
    response_length: [B] int32; the stop token counts.
    mask: [B, T] bool, the tokens to learn from.
    end_reason: [B] int32, see `rollout/continuous_batching.py`.
    row: what weights, advantages and terms may ask of a row; [B] each.
    teachers: role -> what that teacher reads.
    sampler_logp: [B, T] of the distribution that was sampled from; zeros in
      rows of a dataset. None where a dataset wrote every response.
    rollout_logp: [B, T] of the student as it was sampled from, at temperature 1
      and unfiltered. None where it wrote no response.
    turn: [B, T] int32, which turn of the student a token is of. None: one turn.
  """

  prompt: Array
  prompt_length: Array
  response: Array
  response_length: Array
  mask: Array
  end_reason: Array
  row: Row
  teachers: dict[str, TeacherInput] = {}  # noqa: RUF012, never changed
  sampler_logp: Array | None = None
  rollout_logp: Array | None = None
  turn: Array | None = None


class RolloutInfo(NamedTuple):
  """What only the host knows of a batch of b prompts with G responses each.

  Attributes:
    writers: source of each response of a group.
    slot_steps: decoding steps times slots, of all hosts.
    responses: b * G, as reward functions read them.
    rewards: b * G; empty where a dataset wrote every response.
    kept: [b, G] bool, what the filter keeps.
    has_context: role -> [b * G] bool, whether a context that reads responses
      had something to show.
  """

  writers: tuple[str, ...]
  slot_steps: int
  responses: Sequence[Response] = ()
  rewards: Sequence[Reward] = ()
  kept: np.ndarray | None = None
  has_context: Mapping[str, np.ndarray] = {}

  def reward_values(self) -> np.ndarray | None:
    """[b, G] float32, NaN where an example cannot be graded; or None."""
    if not self.rewards:
      return None
    values = np.float32([reward.value for reward in self.rewards])
    return values.reshape(-1, len(self.writers))

  def scored_responses(self) -> list[list[ScoredResponse]]:
    """The responses of each group, as contexts read them."""
    size = len(self.writers)
    scored = [
      ScoredResponse(
        response.text,
        None if np.isnan(reward.value) else float(np.float32(reward.value)),
        self.writers[i % size],
        response.end_reason,
      )
      for i, (response, reward) in enumerate(
        zip(self.responses, self.rewards, strict=True)
      )
    ]
    return [scored[i : i + size] for i in range(0, len(scored), size)]


class Sampled(NamedTuple):
  """The responses to one batch of prompts, as they wait to be learnt.

  Attributes:
    version: updates of the student before it was sampled from.
    minibatches: for each update, this process's rows on the host.
  """

  version: int
  minibatches: list[RolloutBatch]


def interleave(writers: tuple[str, ...], parts: Mapping[str, dict]) -> dict:
  """Rows of several sources in the order of their groups.

  Args:
    writers: source of each response of a group.
    parts: source -> arrays whose rows are prompts x its part of a group.
  """
  columns = []
  for i, name in enumerate(writers):
    count, place = writers.count(name), writers[:i].count(name)
    columns.append(
      jax.tree.map(
        lambda x, n=count, k=place: x.reshape(-1, n, *x.shape[1:])[:, k],
        parts[name],
      )
    )
  return jax.tree.map(
    lambda *x: np.stack(x, axis=1).reshape(-1, *x[0].shape[1:]), *columns
  )


def cut_to_buckets(batch: RolloutBatch, sizes: int) -> RolloutBatch:
  """The batch with as few columns as a bucket needs for all hosts' rows.

  Args:
    batch: on the host.
    sizes: how many lengths there are, see `compilation.bucket`.
  """
  width = lambda rows, length: bucket(
    sharding.largest(length), rows.shape[1], sizes
  )
  cut = lambda x: x._replace(
    prompt=x.prompt[:, : width(x.prompt, x.prompt_length)]
  )
  columns = width(batch.response, batch.response_length)
  fields = ('response', 'mask', 'sampler_logp', 'rollout_logp', 'turn')
  short = {
    name: rows[:, :columns]
    for name in fields
    if (rows := getattr(batch, name)) is not None
  }
  teachers = {role: cut(teacher) for role, teacher in batch.teachers.items()}
  return cut(batch)._replace(teachers=teachers, **short)


def split_groups(
  batch: RolloutBatch, parts: int, group_size: int
) -> list[RolloutBatch]:
  """Whole groups for each update, the same ones on any number of hosts."""

  def rows_of(part: int, x: np.ndarray) -> np.ndarray:
    groups = x.reshape(-1, parts, group_size, *x.shape[1:])
    return groups[:, part].reshape(-1, *x.shape[1:])

  return [
    jax.tree.map(lambda x, i=i: rows_of(i, x), batch) for i in range(parts)
  ]


def to_dict(batch: RolloutBatch) -> dict:
  """The batch as nested dictionaries of arrays, without what is None."""
  plain = lambda x: {n: v for n, v in x._asdict().items() if v is not None}
  return plain(batch) | dict(
    row=plain(batch.row),
    teachers={role: plain(x) for role, x in batch.teachers.items()},
  )


def from_dict(fields: Mapping) -> RolloutBatch:
  """The inverse of `to_dict`."""
  teachers = fields['teachers'].items()
  return RolloutBatch(
    **fields
    | dict(
      row=Row(**fields['row']),
      teachers={role: TeacherInput(**x) for role, x in teachers},
    )
  )


def rollout_metrics(
  batch: RolloutBatch, info: RolloutInfo, sources: Sequence[str]
) -> Metrics:
  """Lengths, rewards and what was kept, over all hosts.

  Where several sources write, names without a source are of the first of them,
  the student if it is among them; the others' are such as 'reward/teacher'.

  Args:
    batch: whole, on the host.
    info: of the batch.
    sources: all that may write, in order.
  """
  writers = np.array(info.writers)
  groups = (-1, len(writers))
  lengths = batch.response_length.reshape(groups)
  clipped = batch.end_reason.reshape(groups) != STOP
  rewards = info.reward_values()
  metrics, tokens = {}, 0
  first = min(info.writers, key=sources.index)
  for name in dict.fromkeys(info.writers):
    suffix, own = '' if name == first else f'/{name}', writers == name
    metrics[f'response_length{suffix}'] = _pair(lengths[:, own])
    if name != 'dataset':
      graded = rewards[:, own]
      metrics[f'reward{suffix}'] = _pair(graded[~np.isnan(graded)])
      metrics[f'completions/clipped_ratio{suffix}'] = _pair(clipped[:, own])
      metrics[f'kept_fraction{suffix}'] = _pair(info.kept[:, own])
      tokens += np.sum(lengths[:, own])
  if rewards is not None:
    if len(writers) > 1:
      graded = rewards[~np.isnan(rewards[:, 0])]
      # Without a difference there is no advantage to learn from.
      metrics['frac_reward_zero_std'] = _pair(np.ptp(graded, axis=1) == 0)
    unjudged = sum(not reward.judged for reward in info.rewards)
    graded = np.count_nonzero(~np.isnan(rewards))
    metrics['reward_timeouts'] = (float(unjudged), graded)
    metrics |= _reward_parts(info, first)
  for role, has_context in info.has_context.items():
    metrics[f'context_hit_rate/{role}'] = _pair(has_context)
  metrics['slot_occupancy'] = (float(tokens), 0)
  total = sharding.from_hosts(np.array(list(metrics.values()))).sum(axis=0)
  metrics = {n: tuple(x) for n, x in zip(metrics, total, strict=True)}
  # Of all tokens that the slots could have written.
  tokens, _ = metrics['slot_occupancy']
  return metrics | {'slot_occupancy': (tokens, int(info.slot_steps))}


def _reward_parts(info: RolloutInfo, source: str) -> Metrics:
  """'reward/<part>' of a source's responses, where rewards have parts."""
  own = [
    reward
    for i, reward in enumerate(info.rewards)
    if info.writers[i % len(info.writers)] == source
  ]
  names = sorted({name for reward in own for name in reward.parts})
  if jax.process_count() > 1:  # hosts must agree on what they add up
    texts = distributed.texts('\n'.join(names))
    names = sorted({name for text in texts for name in text.split('\n')} - {''})
  return {
    f'reward/{name}': _pair(
      np.array([r.parts[name] for r in own if name in r.parts])
    )
    for name in names
  }


def _pair(values: np.ndarray) -> tuple[float, int]:
  return float(np.sum(values)), values.size
