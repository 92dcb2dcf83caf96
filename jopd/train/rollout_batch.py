"""The responses of a step on the host: in groups, graded, measured."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jopd.data.examples import Example, ScoredResponse
from jopd.losses import Row, group_reward_stats
from jopd.rewards import Response
from jopd.rollout.continuous_batching import STOP
from jopd.train.metrics import Metrics
from jopd.train.stage import Stage


class Answers(NamedTuple):
  """Responses to a batch of prompts, on the host; rows are prompts x group."""

  response: np.ndarray  # [B, T]
  response_length: np.ndarray  # [B]
  sampler_logp: np.ndarray  # [B, T]; zeros for a dataset's
  logp: np.ndarray  # [B, T] of the raw model; zeros for a dataset's
  end: np.ndarray  # [B] how each one ended; see rollout/continuous_batching.py
  slot_steps: np.ndarray  # decoding steps times slots, of all hosts
  members: tuple[str, ...]  # who wrote each of a group


class Grades(NamedTuple):
  """What became of the answers, on the host; b prompts, G answers each."""

  rewards: np.ndarray | None  # [b, G]; NaN where a prompt has no reference
  keep: np.ndarray  # [b, G] bool, which are learnt from
  # Role -> what a teacher who is told of them reads; see `Stage.told`.
  told: dict[str, tuple]
  unjudged: int = 0  # rewards of 0 for want of a verdict


# What a source says of its own responses.
SAID = tuple(name for name in Answers._fields if name != 'members')


def in_groups(
  members: tuple[str, ...], said: Mapping[str, Sequence]
) -> Answers:
  """The responses of several sources, as groups.

  Args:
    members: who wrote each response of a group.
    said: source -> its `SAID`, rows being prompts x its part of a group.
  """
  if len(said) == 1:
    return Answers(*next(iter(said.values())), members=members)

  def rows(field: str, of: Mapping[str, np.ndarray | np.int32]):
    if field == 'slot_steps':
      return sum(of.values())
    each = []
    for i, name in enumerate(members):
      own = of[name].reshape(-1, members.count(name), *of[name].shape[1:])
      each.append(own[:, members[:i].count(name)])
    return np.stack(each, axis=1).reshape(-1, *each[0].shape[1:])

  fields = {
    field: rows(field, {name: own[i] for name, own in said.items()})
    for i, field in enumerate(SAID)
  }
  return Answers(**fields, members=members)


def scored_responses(
  responses: Sequence[Response], rewards: np.ndarray, members: tuple[str, ...]
) -> list[list[ScoredResponse]]:
  """The responses of each group, as a context may tell of them.

  Args:
    responses: b * G of them.
    rewards: [b, G]; NaN where there is no answer to grade by.
    members: who wrote each of a group.
  """
  size = len(members)
  groups = [responses[i : i + size] for i in range(0, len(responses), size)]
  known = lambda reward: None if np.isnan(reward) else float(reward)
  return [
    [
      ScoredResponse(x.text, known(reward), source, x.end_reason)
      for x, reward, source in zip(*row, members, strict=True)
    ]
    for row in zip(groups, rewards, strict=True)
  ]


def rows_of(
  examples: Sequence[Example], answers: Answers, grades: Grades, stage: Stage
) -> Row:
  """What is known of each response, for the loss; arrays of the host.

  Args:
    examples: the prompts, b.
    answers: to them.
    grades: of these.
    stage: whose sources and domains are counted, and who reads rewards.
  """
  row, size = Row(), len(answers.members)
  if stage.loss.reads.reward:
    row = jax.device_get(group_reward_stats(jnp.asarray(grades.rewards)))
  origin = {name: i for i, name in enumerate(stage.rollouts.sources)}
  domain = {name: i for i, name in enumerate(stage.prompts.domains)}
  origins = np.int32([origin[name] for name in answers.members])
  domains = np.int32([domain.get(x.domain, -1) for x in examples])
  # A group's number is that of no other, on any host.
  first = len(examples) * jax.process_index()
  groups = first + np.arange(len(examples), dtype=np.int32)
  return row._replace(
    group=np.repeat(groups, size),
    source=np.tile(origins, len(examples)),
    domain=np.repeat(domains, size),
  )


def measured(
  answers: Answers, grades: Grades, sources: Sequence[str]
) -> Metrics:
  """Lengths; rewards, truncation and selection of what was sampled.

  Where several sources write, names without a mark are of the first of them,
  the student if it is among them; the others' are such as 'reward/teacher'.

  Args:
    answers: of this host.
    grades: of these.
    sources: all that may write, in order.
  """
  members = np.array(answers.members)
  groups = (-1, len(members))
  lengths, ends = (
    x.reshape(groups) for x in (answers.response_length, answers.end)
  )
  first, found, tokens = min(answers.members, key=sources.index), {}, 0
  for name in dict.fromkeys(answers.members):
    mark, own = '' if name == first else f'/{name}', members == name
    found[f'response_length{mark}'] = _pair(lengths[:, own])
    if name != 'dataset':
      rewards = grades.rewards[:, own]
      found[f'reward{mark}'] = _pair(rewards[~np.isnan(rewards)])
      found[f'truncated{mark}'] = _pair(ends[:, own] != STOP)
      found[f'kept{mark}'] = _pair(grades.keep[:, own])
      tokens += np.sum(lengths[:, own])
  if grades.rewards is not None and len(members) > 1:
    graded = grades.rewards[~np.isnan(grades.rewards[:, 0])]
    # Others have no advantage to teach.
    found['mixed_groups'] = _pair(np.ptp(graded, axis=1) > 0)
  if grades.rewards is not None:
    graded = np.count_nonzero(~np.isnan(grades.rewards))
    found['reward_timeouts'] = (float(grades.unjudged), graded)
  for role, (*_, told) in grades.told.items():
    found[f'told/{role}'] = _pair(told)
  return found | {'slot_occupancy': (tokens, 0)}


def _pair(values: np.ndarray) -> tuple[float, int]:
  return float(np.sum(values)), values.size
