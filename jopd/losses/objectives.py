"""What a term of the loss charges each token: a TokenBatch to [*B] losses.

There are five ways to make an objective: `divergence` (a divergence between
distributions), `kl_estimate` (a penalty on the sampled token), `policy_gradient` (a
advantage on it), `negative_log_likelihood` (imitation of it) and `preference` (of
one response over another). Hyper-parameters are bound with `functools.partial`.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jopd.losses import old_policies
from jopd.losses.advantages import log_ratio
from jopd.losses.distributions import finite, token_logp
from jopd.losses.supports import full
from jopd.losses.targets import teacher
from jopd.losses.token_stats import (
  Reads,
  Row,
  TokenStats,
  group_sum,
  reads,
  reads_of,
  row_sum,
  same_group,
  token_stats,
)


class TokenBatch(NamedTuple):
  """What an objective sees of each token; *B is [B, T] or any part of it.

  Attributes:
    student_logp: [*B, V] log-probs, float32, temperature applied.
    logps: the same of each teacher, by name. May be empty.
    token: [*B] the sampled ids.
    sampler_logp: [*B] their log-probs when they were sampled.
    rollout_logp: [*B] the same under the student of that time, temperature 1
      and no filter; None if it was not recorded.
    row: Row of [*B], that of each token; None if nothing is known.
  """

  student_logp: Float[Array, '*B V']
  logps: dict[str, Float[Array, '*B V']]
  token: Int[Array, '*B']
  sampler_logp: Float[Array, '*B'] | None
  rollout_logp: Float[Array, '*B'] | None = None
  row: Row | None = None


Objective = Callable[[TokenBatch], Float[Array, '*B']]


class WithAdvantage(NamedTuple):
  """An objective that reads an advantage of each token: see `policy_gradient`.

  Callable like any other. The advantage can also be taken first, over the whole
  batch, and handed to the loss later, chunk by chunk.

  Attributes:
    loss: (TokenBatch, advantage) -> [*B] losses.
    advantage: TokenStats -> [*B], or a tree of such arrays.
    target: which distribution the stats that the advantage reads compare with.
    reads: what advantage and old policy read.
  """

  loss: Callable[[TokenBatch, Float[Array, '*B']], Float[Array, '*B']]
  advantage: Callable[[TokenStats], Float[Array, '*B']]
  target: Callable
  reads: Reads

  def __call__(self, batch: TokenBatch) -> Float[Array, '*B']:
    return self.loss(batch, self.advantage(batch_stats(batch, self.target)))


def divergence(
  divergence: Callable, *, support: Callable = full, target: Callable = teacher
) -> Objective:
  """An exact divergence to the target at every token: the default of OPD.

  Args:
    divergence: (student_logp, target_logp), [*B, K] -> [*B].
    support: (student_logp, target_logp), [*B, V] -> two [*B, K].
    target: dict of [*B, V] -> [*B, V]. Constant. The dict holds the teachers'
      log-probs by name, and the student's own as 'student'.

  Returns:
    An objective.

  Gradients: those of the divergence, through the student's side only.

  Example: reverse KL on the teacher's top 64 and a bucket for the rest.
    >>> from functools import partial
    >>> from jopd.losses import reverse_kl, top_k
    >>> objective = divergence(reverse_kl, support=partial(top_k, k=64))
  """

  @reads('token')
  def objective(batch):
    target_logp = _target_logp(batch, target)
    return divergence(*support(batch.student_logp, target_logp))

  return objective


def kl_estimate(
  estimator: Callable, *, target: Callable = teacher
) -> Objective:
  """A penalty on the sampled token alone, differentiated as it stands.

  Args:
    estimator: (student_logp, target_logp), [*B] -> [*B]: `k2` or `k3`.
    target: as in `divergence`.

  Returns:
    An objective.

  Gradients: see `penalties`; unbiased only for tokens sampled from the student.
  """

  @reads('token')
  def objective(batch):
    target_logp = _target_logp(batch, target)
    return estimator(
      token_logp(batch.student_logp, batch.token),
      token_logp(target_logp, batch.token),
    )

  return objective


def policy_gradient(
  surrogate: Callable,
  *,
  advantage: Callable[[TokenStats], Float[Array, '*B']] = log_ratio,
  old_policy: Callable[[TokenStats], Float[Array, '*B']] = old_policies.student,
  target: Callable = teacher,
) -> WithAdvantage:
  """A policy gradient on the sampled token, with an advantage read from its stats.

  Args:
    surrogate: (student_logp, old_logp, advantage), [*B] -> [*B].
    advantage: TokenStats -> [*B]. Constant. May look along the row or over the
      whole batch, see `stats.reads`.
    old_policy: TokenStats -> [*B], the log-prob that the ratio is taken to, of each
      token by itself. `old_policies.student`: ratio 1, for one update per rollout.
      `old_policies.sampler`: importance weighting, for several.
    target: as in `divergence`; what the stats compare with.

  Returns:
    An objective.

  Gradients: with `log_ratio`, the expectation is exactly that of the full
    reverse KL at each token: anchored to the student for tokens sampled from
    it, to the sampler (and `reinforce`) for those of any policy that covers it.
  """

  def loss(batch, advantage):
    old_logp = old_policy(batch_stats(batch, target))
    return surrogate(
      token_logp(batch.student_logp, batch.token),
      jax.lax.stop_gradient(old_logp),
      jax.lax.stop_gradient(advantage),
    )

  return WithAdvantage(
    loss, advantage, target, reads_of(advantage) | reads_of(old_policy)
  )


def negative_log_likelihood() -> Objective:
  """Imitation of the tokens, -log p(token): SFT. Needs no teacher.

  Returns:
    An objective.

  Gradients: -grad log p(token).
  """

  @reads('token')
  def objective(batch):
    return -finite(token_logp(batch.student_logp, batch.token))

  return objective


def preference(
  *, beta: float, by: str = 'source', target: Callable = teacher
) -> WithAdvantage:
  """The better of two responses to a prompt, -log sigmoid(m): DPO.

  m = beta [log p(y+) / q(y+) - log p(y-) / q(y-)], sums over all tokens, q the
  target, which need not read what the student reads. Every pair of a group
  counts, and of the pairs the mean. Meant for the reduction `fixed_length` of
  length 1: then the value is the mean over rows of their group's loss, nats.
  `token_mean` differs by one factor, `sequence_mean` makes short rows weigh
  more.

  Args:
    beta: > 0, how far the student may go from the target for a preference.
    by: what makes a response the better one. 'source': that the student did
      not write it. 'reward': that it has the larger one.
    target: as in `divergence`; the reference.

  Returns:
    An objective, which reads the rows' groups.

  Gradients: a policy gradient with the advantage +-beta sigmoid(-m): of both
    responses, to the log-probs of all their tokens.
  Numerics: rows without another to be compared with add 0.
  Raises: ValueError when beta is not above 0, or by is none of the two.
  References: Rafailov et al., Direct Preference Optimization, arXiv 2305.18290,
    eq. 7. With a context teacher as the reference, and its own response
    preferred to the student's: PBSD, arXiv 2605.05040, as known from notes;
    beta, and a normalisation by length if there is one, are not known.

  Example: m = 0 where the student is its target, so the loss is log 2.
    >>> import jax.numpy as jnp
    >>> from jopd.losses import Row, Term, distill_loss, fixed_length
    >>> logp = jnp.log(jnp.array([[[0.25, 0.75]], [[0.5, 0.5]]]))
    >>> batch = TokenBatch(
    ...   student_logp=logp,
    ...   logps={'teacher': logp},
    ...   token=jnp.array([[0], [1]]),
    ...   sampler_logp=jnp.zeros((2, 1)),
    ...   row=Row(group=jnp.zeros((2, 1), int), source=jnp.array([[0], [1]])),
    ... )
    >>> loss = distill_loss(
    ...   batch,
    ...   {'prefer': Term(preference(beta=0.1))},
    ...   mask=jnp.ones((2, 1), bool),
    ...   reduce=functools.partial(fixed_length, length=1),
    ...   count=2,
    ... )
    >>> round(float(loss), 4)
    0.6931
  """
  if not beta > 0:
    raise ValueError(f'beta must be above 0, got {beta!r}')
  if by not in ('source', 'reward'):
    raise ValueError(f"by must be 'source' or 'reward', got {by!r}")

  def loss(batch, advantage):
    value, slope = jax.lax.stop_gradient(advantage)
    student_logp = finite(token_logp(batch.student_logp, batch.token))
    moved = student_logp - jax.lax.stop_gradient(student_logp)
    return value + slope * moved

  pairs = functools.partial(_preferred, beta=beta, by=by)
  return WithAdvantage(loss, pairs, target, reads_of(pairs))


def _target_logp(batch: TokenBatch, target: Callable):
  """What the student is pulled to, as a constant."""
  own = {'student': batch.student_logp}
  return jax.lax.stop_gradient(target(own | batch.logps))


def batch_stats(
  batch: TokenBatch, target: Callable, mask: Bool[Array, '*B'] | None = None
) -> TokenStats:
  """The stats of a batch against a target, or without one if no teacher is.

  Gradients: none; stats are constants.
  """
  target_logp = _target_logp(batch, target) if batch.logps else None
  return token_stats(
    batch.student_logp,
    target_logp,
    batch.token,
    batch.sampler_logp,
    rollout_logp=batch.rollout_logp,
    mask=mask,
    row=batch.row,
  )


@reads('group', reward=lambda *, by, **_: by == 'reward')
def _preferred(
  stats: TokenStats, *, beta: float, by: str
) -> tuple[Float[Array, 'B T'], Float[Array, 'B T']]:
  """Value and slope of the mean of -log sigmoid(m) over the pairs of a group.

  Args:
    stats: TokenStats of whole groups, [B, T], with a target.
    beta: of m = beta (r_better - r_worse), r the log-ratio of a row.
    by: 'source' or 'reward', what makes one row better than another.

  Returns:
    Two [B, T]: what each token says of the loss, so that every row has all of
    it; the derivative to the log-prob of each token, times the rows of a group.
  """
  same = same_group(stats)
  ratio = row_sum(stats, stats.student_logp - stats.target_logp)
  score = stats.source[:, 0] > 0 if by == 'source' else stats.reward[:, 0]
  better = same & (score[:, None] > score[None, :])
  margin = beta * (ratio[:, None] - ratio[None, :])
  doubt = jnp.where(better, jax.nn.sigmoid(-margin), 0.0)
  losses = jnp.where(better, jax.nn.softplus(-margin), 0.0)
  pairs = group_sum(same, jnp.sum(better, axis=1, dtype=jnp.float32))
  pairs = jnp.maximum(pairs, 1.0)
  rows = jnp.sum(same, axis=1, dtype=jnp.float32)
  value = group_sum(same, jnp.sum(losses, axis=1)) / pairs
  slope = -beta * (jnp.sum(doubt, axis=1) - jnp.sum(doubt, axis=0))
  slope *= rows / pairs
  tokens = jnp.maximum(jnp.sum(stats.mask, axis=1), 1)
  each = lambda x: jnp.broadcast_to(x[:, None], stats.mask.shape)
  return each(value / tokens), each(slope)
