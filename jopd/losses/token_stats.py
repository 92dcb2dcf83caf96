"""Scalars of each token, which weights, advantages and metrics read."""

from collections.abc import Callable, Collection
import functools
import inspect
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jopd.losses.distributions import entropy, finite, token_logp, top_indices
from jopd.losses.divergences import reverse_kl

SCOPES = ('token', 'row', 'group', 'batch')  # each contains the one before
TOP = 16  # As in Rethinking On-Policy Distillation, arXiv 2604.13016.


class Row(NamedTuple):
  """What is known of a response beside its tokens.

  [B], one of each row, or [*B] where each token carries that of its row. None
  is unknown.

  Attributes:
    reward: of the response.
    group_mean: the mean reward of the responses to its prompt, itself included.
    group_std: their standard deviation, of the group as a population.
    group: int, the same for all responses to one prompt, and no others.
    source: int, what generated it: its index among the response sources of a
      stage.
    domain: int, that of its prompt: the index among the domains that terms
      name; -1 for all others.
    staleness: updates of the student since the response was sampled.
  """

  reward: Float[Array, '*B'] | None = None
  group_mean: Float[Array, '*B'] | None = None
  group_std: Float[Array, '*B'] | None = None
  group: Int[Array, '*B'] | None = None
  source: Int[Array, '*B'] | None = None
  domain: Int[Array, '*B'] | None = None
  staleness: Float[Array, '*B'] | None = None


class TokenStats(NamedTuple):
  """Per-token scalars, [*B] float32, all under stop-gradient.

  None is unknown, such as rewards of responses without an answer. Where the
  mask is False the values are finite and arbitrary. Only what a function reads
  must be set: `TokenStats(student_logp=p, target_logp=q, mask=mask)`.

  Attributes:
    student_logp: log-prob of the token under the student, nats.
    target_logp: the same under the target.
    sampler_logp: the same under the distribution that sampled it.
    mask: bool, True where the token counts. Functions of single tokens do not
      read it.
    student_entropy: entropy of the student, nats.
    target_entropy: entropy of the target, nats.
    entropy_gap: |target_entropy - student_entropy|.
    reverse_kl: KL(student || target), exact, over the whole vocabulary.
    overlap: share of the student's top 16 that is in the target's top 16.
    overlap_mass: the student's probability on the tokens that the two share.
    overlap_advantage: mean over these of p (log q - log p), both renormalised
      on them, nats; 0 is agreement. It does not see what is not shared.
    in_top: 1 where the token is in the student's top 16, else 0.
    target_mass: the student's probability on the target's top 16. When it falls
      while the loss falls, the student leaves the support of the target.
    margin: the largest log-prob of the target among the student's top 16 less
      their mean, nats. It falls where the target no longer distinguishes the
      student's candidates.
    logp_difference: |log p - log p'| of the token, p' the student as the
      sampler ran it: another precision, kernel or step. Nats.
    reward: of the token's response; this and the following are those of `Row`.
    group_mean: mean reward of the responses to the same prompt.
    group_std: their standard deviation.
    group: index of the prompt.
    source: index of the response source.
    domain: index of the domain of the prompt.
    staleness: updates of the student since the response was sampled.
  """

  student_logp: Float[Array, '*B'] | None = None
  target_logp: Float[Array, '*B'] | None = None
  sampler_logp: Float[Array, '*B'] | None = None
  mask: Bool[Array, '*B'] | None = None
  student_entropy: Float[Array, '*B'] | None = None
  target_entropy: Float[Array, '*B'] | None = None
  entropy_gap: Float[Array, '*B'] | None = None
  reverse_kl: Float[Array, '*B'] | None = None
  overlap: Float[Array, '*B'] | None = None
  overlap_mass: Float[Array, '*B'] | None = None
  overlap_advantage: Float[Array, '*B'] | None = None
  in_top: Float[Array, '*B'] | None = None
  target_mass: Float[Array, '*B'] | None = None
  margin: Float[Array, '*B'] | None = None
  logp_difference: Float[Array, '*B'] | None = None
  reward: Float[Array, '*B'] | None = None
  group_mean: Float[Array, '*B'] | None = None
  group_std: Float[Array, '*B'] | None = None
  group: Int[Array, '*B'] | None = None
  source: Int[Array, '*B'] | None = None
  domain: Int[Array, '*B'] | None = None
  staleness: Float[Array, '*B'] | None = None

  @property
  def log_ratio(self) -> Float[Array, '*B'] | None:
    """The token's log q - log p, nats; None without a target."""
    if self.target_logp is None:
      return None
    return self.target_logp - self.student_logp


class TokenBatch(NamedTuple):
  """What an objective reads of each token; *B is [B, T] or any part of it.

  Attributes:
    student_logp: [*B, V] log-probs, float32, temperature applied.
    logps: the same of each teacher, by name. May be empty.
    token: [*B] the sampled ids.
    sampler_logp: [*B] their log-probs when they were sampled.
    rollout_logp: [*B] the same under the student of that time, temperature 1
      and no filter; None if it was not recorded.
    row: Row of [*B], that of each token; None is unknown.
  """

  student_logp: Float[Array, '*B V']
  logps: dict[str, Float[Array, '*B V']]
  token: Int[Array, '*B']
  sampler_logp: Float[Array, '*B'] | None
  rollout_logp: Float[Array, '*B'] | None = None
  row: Row | None = None


def stat_named(stats: TokenStats, of: str) -> Float[Array, '*B']:
  """One of the scalars, by its name; ValueError when it is not there."""
  fields = stats._asdict().items()
  known = [n for n, x in fields if n != 'mask' and x is not None]
  if stats.target_logp is not None:
    known.append('log_ratio')
  if of not in known:
    raise ValueError(f'of must be a known stat, one of {known}; got {of!r}')
  return getattr(stats, of)


def group_reward_stats(rewards: Float[Array, 'b G']) -> Row:
  """What is known of each response from the rewards of its group.

  Args:
    rewards: [b, G] of the G responses to each of b prompts.

  Returns:
    Row of [b * G], without source and domain.

  Gradients: none; rewards are constants.
  References: Shao et al., DeepSeekMath, arXiv 2402.03300. Where released code
    takes the standard deviation of a sample, it is sqrt(G / (G - 1)) larger.

  Example: one right answer of four, mean 1/4, deviation sqrt(3) / 4.
    >>> row = group_reward_stats(jnp.array([[1.0, 0.0, 0.0, 0.0]]))
    >>> [round(float(x[0]), 4) for x in row[:3]]
    [1.0, 0.25, 0.433]
  """
  mean = rewards.mean(axis=1, keepdims=True)
  std = rewards.std(axis=1, keepdims=True)
  rows = lambda x: jnp.broadcast_to(x, rewards.shape).reshape(-1)
  group = rows(jnp.arange(len(rewards), dtype=jnp.int32)[:, None])
  return Row(rows(rewards), rows(mean), rows(std), group)


def rows_where(
  row: Row, *, sources: Collection[int] = (), domains: Collection[int] = ()
) -> Bool[Array, '*B']:
  """True for the rows of one of the sources and of one of the domains.

  Args:
    row: Row of [*B].
    sources: static; empty for all.
    domains: static; empty for all.

  Returns:
    [*B] bool.

  Raises: ValueError when both are empty.

  Example:
    >>> row = Row(source=jnp.array([0, 1, 1]), domain=jnp.array([0, 0, 2]))
    >>> rows_where(row, sources=[1], domains=[0, 1]).tolist()
    [False, True, False]
  """
  if not sources and not domains:
    raise ValueError('expected sources or domains, got neither')
  selected = [
    jnp.any(jnp.stack([column == index for index in indices]), axis=0)
    for column, indices in ((row.source, sources), (row.domain, domains))
    if indices
  ]
  return jnp.all(jnp.stack(selected), axis=0)


class Reads(NamedTuple):
  """What a weight, an advantage or another function of `TokenStats` reads.

  Attributes:
    scope: how far it looks. 'token': the result for a token depends on the
      stats of that token alone, so that the chunked loss needs one pass.
      'row': on its response; it is called on whole rows, [B, T]. 'group': on
      the responses to its prompt, which gradient accumulation keeps together.
      'batch': on the whole batch, which gradient accumulation would change.
    reward: whether it needs rewards.
    sampler: whether it reads the log-probs of the sampler.
  """

  scope: str = 'batch'
  reward: bool = True
  sampler: bool = True

  def __or__(self, other: 'Reads') -> 'Reads':
    """What two functions read together."""
    return Reads(
      max(self.scope, other.scope, key=SCOPES.index),
      self.reward or other.reward,
      self.sampler or other.sampler,
    )


NOTHING = Reads('token', reward=False, sampler=False)


def reads(
  scope: str,
  *,
  reward: bool | Callable[..., bool] = False,
  sampler: bool = False,
) -> Callable:
  """Declares what a function reads; see `Reads`.

  An undeclared function is taken to read everything: the result is correct,
  and slower.

  Args:
    scope: 'token', 'row', 'group' or 'batch'.
    reward: whether it needs rewards; or (**settings) -> bool, where that
      depends on its settings.
    sampler: whether it reads the log-probs of the sampler.

  Returns:
    A decorator that returns its function.

  Raises: ValueError when there is no such scope.

  Example:
    >>> @reads('token')
    ... def certain(stats):
    ...   return stats.student_entropy < 0.1
    >>> reads_of(certain)
    Reads(scope='token', reward=False, sampler=False)
    >>> reads_of(lambda stats: stats.student_entropy)
    Reads(scope='batch', reward=True, sampler=True)
  """
  if scope not in SCOPES:
    raise ValueError(f'scope must be one of {SCOPES}, got {scope!r}')

  def declare(function):
    function.reads = Reads(scope, reward, sampler)
    return function

  return declare


def reads_of(function: Callable) -> Reads:
  """What a function reads, and what functions among its settings read.

  Args:
    function: declared with `reads` or not; or a `functools.partial` of one.
  """
  inner = function
  while isinstance(inner, functools.partial):
    inner = inner.func
  declared = getattr(inner, 'reads', None)
  if declared is None:
    return Reads()
  settings = {
    name: parameter.default
    for name, parameter in inspect.signature(function).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
  }
  if callable(declared.reward):
    declared = declared._replace(reward=bool(declared.reward(**settings)))
  others = [
    reads_of(x)
    for x in settings.values()
    if callable(x) and x is not inspect.Parameter.empty
  ]
  return functools.reduce(operator.or_, others, declared)


def names_reward(*, of: str, **settings) -> bool:
  """Whether a setting `of` names a stat that needs rewards; for `reads`."""
  return of in ('reward', 'group_mean', 'group_std')


def token_stats(
  student_logp: Float[Array, '*B V'],
  target_logp: Float[Array, '*B V'] | None,
  token: Int[Array, '*B'],
  sampler_logp: Float[Array, '*B'] | None,
  *,
  rollout_logp: Float[Array, '*B'] | None = None,
  mask: Bool[Array, '*B'] | None = None,
  row: Row | None = None,
) -> TokenStats:
  """The stats of each token.

  Under `jit`, unread ones are not computed.

  Args:
    student_logp: [*B, V] log-probs of the student.
    target_logp: [*B, V] log-probs of the target, or None.
    token: [*B] the sampled ids.
    sampler_logp: [*B] their log-probs when they were sampled; None for a
      dataset's.
    rollout_logp: [*B] the same under the student of that time, temperature 1
      and no filter; None if it was not recorded.
    mask: [*B], True counts. Default: every token does.
    row: Row of [*B], that of each token, or None.

  Returns:
    TokenStats.

  Gradients: none.

  Example: of three tokens all are in the top 16.
    >>> p = jnp.log(jnp.array([0.2, 0.3, 0.5]))
    >>> stats = token_stats(p, p, jnp.array(2), jnp.array(-1.0))
    >>> float(stats.reverse_kl), float(stats.overlap)
    (0.0, 1.0)
  """
  student_logp = finite(jax.lax.stop_gradient(student_logp))
  stats = TokenStats(
    student_logp=token_logp(student_logp, token),
    sampler_logp=None
    if sampler_logp is None
    else finite(jax.lax.stop_gradient(sampler_logp)),
    student_entropy=entropy(student_logp),
    mask=jnp.ones(token.shape, bool) if mask is None else mask,
    **jax.lax.stop_gradient(row._asdict() if row else {}),
  )
  if rollout_logp is not None:
    gap = stats.student_logp - finite(jax.lax.stop_gradient(rollout_logp))
    stats = stats._replace(logp_difference=jnp.abs(gap))
  if target_logp is None:
    return stats
  target_logp = finite(jax.lax.stop_gradient(target_logp))
  k = min(TOP, target_logp.shape[-1])
  student_top = top_indices(student_logp, k)
  target_top = top_indices(target_logp, k)
  shared = (student_top[..., :, None] == target_top[..., None, :]).any(-1)
  on_target = jnp.take_along_axis(student_logp, target_top, axis=-1)
  target_entropy = entropy(target_logp)
  target_there = jnp.take_along_axis(target_logp, student_top, axis=-1)
  mass, advantage = _on_shared(
    jnp.take_along_axis(student_logp, student_top, axis=-1),
    target_there,
    shared,
  )
  return stats._replace(
    target_logp=token_logp(target_logp, token),
    target_entropy=target_entropy,
    entropy_gap=jnp.abs(target_entropy - stats.student_entropy),
    reverse_kl=reverse_kl(student_logp, target_logp),
    overlap=jnp.mean(shared, axis=-1, dtype=jnp.float32),
    overlap_mass=mass,
    overlap_advantage=advantage,
    in_top=jnp.any(student_top == token[..., None], axis=-1).astype(float),
    target_mass=jnp.sum(jnp.exp(on_target), axis=-1),
    margin=jnp.max(target_there, axis=-1) - jnp.mean(target_there, axis=-1),
  )


def _on_shared(student_logp, target_logp, shared):
  """Mass and advantage of the student on the tokens that it shares, [*B]."""
  count = jnp.maximum(jnp.sum(shared, axis=-1), 1)
  p, q = (
    jnp.where(shared, jnp.exp(logp), 0.0)
    for logp in (student_logp, target_logp)
  )
  mass, target_mass = jnp.sum(p, axis=-1), jnp.sum(q, axis=-1)
  # sum of p (log q - log p), all over the sum of p: then both are normalised.
  gap = jnp.sum(p * jnp.where(shared, target_logp - student_logp, 0.0), axis=-1)
  none = mass == 0
  bounded = lambda x: jnp.where(none, 1.0, jnp.maximum(x, 1e-30))
  advantage = gap / bounded(mass)
  advantage += jnp.log(bounded(mass) / bounded(target_mass))
  return mass, jnp.where(none, 0.0, advantage) / count


def target_logp(batch: TokenBatch, target: Callable) -> Float[Array, '*B V']:
  """The target's log-probs, of teachers and 'student'; no gradient."""
  student = {'student': batch.student_logp}
  return jax.lax.stop_gradient(target(student | batch.logps))


def batch_stats(
  batch: TokenBatch, target: Callable, mask: Bool[Array, '*B'] | None = None
) -> TokenStats:
  """The stats of a batch; without a teacher those of a target are None.

  Gradients: none; stats are constants.
  """
  return token_stats(
    batch.student_logp,
    target_logp(batch, target) if batch.logps else None,
    batch.token,
    batch.sampler_logp,
    rollout_logp=batch.rollout_logp,
    mask=mask,
    row=batch.row,
  )


def live_rows(stats: TokenStats) -> Bool[Array, ' B']:
  """The rows that have a token which counts; no gradient."""
  return jnp.any(stats.mask, axis=1)


def row_sum(stats: TokenStats, x: Float[Array, 'B T']) -> Float[Array, ' B']:
  """The sum over the tokens of each row that count; gradient to these of x."""
  return jnp.sum(jnp.where(stats.mask, x, 0.0), axis=1)


def row_mean(stats: TokenStats, x: Float[Array, 'B T']) -> Float[Array, ' B']:
  """The mean over the tokens of each row that count, 0 where none does.

  Gradients: to these tokens of x, over their number.
  """
  return row_sum(stats, x) / jnp.maximum(jnp.sum(stats.mask, axis=1), 1)


def same_group(stats: TokenStats) -> Bool[Array, 'B B']:
  """Which rows answer the same prompt, of those with a token that counts.

  A group is the rows of one number, wherever they stand, so that the result is
  the same on any mesh.

  Gradients: none.
  Raises: ValueError when the rows have no group.
  """
  if stats.group is None:
    raise ValueError(
      'expected stats.group, which rows answer the same prompt; got None: set'
      ' Row.group'
    )
  group, live = stats.group[:, 0], live_rows(stats)
  same = group[:, None] == group[None, :]
  return same & live[:, None] & live[None, :]


def group_sum(same: Bool[Array, 'B B'], x: Float[Array, ' B']):
  """For each row the sum over its group, [B]; gradient to all of its rows."""
  return jnp.sum(jnp.where(same, x[None, :], 0.0), axis=1)
