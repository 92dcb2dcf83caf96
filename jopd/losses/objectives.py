"""Objectives: (TokenBatch) -> [*B], the loss of each token.

`divergence` compares distributions, `kl_estimate` and `policy_gradient` read
the sampled token, `negative_log_likelihood` imitates it, and `preference`
compares two responses. Bind hyper-parameters with `functools.partial`.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jopd.losses import old_policies
from jopd.losses.advantages import log_ratio
from jopd.losses.distributions import finite, token_logp
from jopd.losses.supports import full
from jopd.losses.targets import teacher
from jopd.losses.token_stats import (
  Reads,
  TokenBatch,
  TokenStats,
  batch_stats,
  group_sum,
  reads,
  reads_of,
  row_sum,
  same_group,
  target_logp,
)

Objective = Callable[[TokenBatch], Float[Array, '*B']]


class WithAdvantage(NamedTuple):
  """An objective that reads an advantage of each token: see `policy_gradient`.

  Callable like any other. The chunked loss computes the advantage first, over
  the whole batch, and passes it to the loss chunk by chunk.

  Attributes:
    loss: (TokenBatch, advantage) -> [*B] losses.
    advantage: TokenStats -> [*B], or a tree of such arrays.
    target: the distribution that the stats of the advantage compare with.
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
    target_side = target_logp(batch, target)
    return divergence(*support(batch.student_logp, target_side))

  return objective


def kl_estimate(
  estimator: Callable, *, target: Callable = teacher
) -> Objective:
  """An estimate of the KL from the sampled token, differentiated as it is.

  Args:
    estimator: (student_logp, target_logp), [*B] -> [*B]: `k2` or `k3`.
    target: as in `divergence`.

  Returns:
    An objective.

  Gradients: see `kl_estimators`; unbiased only for tokens sampled from the
    student.
  """

  @reads('token')
  def objective(batch):
    return estimator(
      token_logp(batch.student_logp, batch.token),
      token_logp(target_logp(batch, target), batch.token),
    )

  return objective


def policy_gradient(
  surrogate: Callable,
  *,
  advantage: Callable[[TokenStats], Float[Array, '*B']] = log_ratio,
  old_policy: Callable[[TokenStats], Float[Array, '*B']] = old_policies.student,
  target: Callable = teacher,
) -> WithAdvantage:
  """A policy gradient on the sampled token, with an advantage of its stats.

  Args:
    surrogate: (student_logp, old_logp, advantage), [*B] -> [*B].
    advantage: TokenStats -> [*B]. Constant. May read the row or the whole
      batch, see `reads`.
    old_policy: TokenStats -> [*B], the log-prob that the ratio is taken to, of
      each token by itself. `old_policies.student`: ratio 1, for one update per
      rollout. `old_policies.sampler`: importance weighting, for several.
    target: as in `divergence`; what the stats compare with.

  Returns:
    An objective.

  Gradients: with `log_ratio`, the expectation is exactly that of the full
    reverse KL at each token: with the student as old policy for tokens sampled
    from it, with the sampler (and `reinforce`) for those of any policy that
    covers it.
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
  target, which need not read what the student reads. The loss is the mean
  over the pairs of a group. Meant for the aggregation `fixed_length` of
  length 1: then the value is the mean over rows of their group's loss, nats.
  `token_mean` differs by one factor, `sequence_mean` makes short rows weigh
  more.

  Args:
    beta: > 0, how far the student may go from the target for a preference.
    by: which response is better. 'source': the one that the student did not
      write. 'reward': the one with the larger reward.
    target: as in `divergence`; the reference.

  Returns:
    An objective, which reads the rows' groups.

  Gradients: a policy gradient with the advantage +-beta sigmoid(-m): of both
    responses, to the log-probs of all their tokens.
  Numerics: rows without a pair add 0.
  Raises: ValueError when beta is not above 0, or by is neither.
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
    Two [B, T]: the loss of the row's group, spread over its tokens; and the
    derivative to the log-prob of each token, times the rows of a group.
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
