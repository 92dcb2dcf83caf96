"""A loss is a sum of terms, and a term is put together from the other modules.

  loss = sum over terms of coef * reduce(weight * objective)

An objective maps a TokenBatch to [*B] losses. There are four ways to make one:
`matching` (a divergence between distributions), `sampled` (a penalty on the
sampled token), `policy_gradient` (a credit on it) and `negative_log_likelihood`
(imitation of it). Hyper-parameters are bound with `functools.partial`.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
from jaxtyping import ScalarLike as Scalar

from jopd.losses.credits import log_ratio
from jopd.losses.distributions import finite, pick
from jopd.losses.reductions import token_mean
from jopd.losses.stats import TokenStats, token_stats
from jopd.losses.supports import full
from jopd.losses.targets import teacher
from jopd.losses.weights import uniform


class TokenBatch(NamedTuple):
  """What an objective sees of each token; *B is [B, T] or any part of it.

  Attributes:
    student_logp: [*B, V] log-probs, float32, temperature applied.
    logps: the same of each teacher, by name. May be empty.
    token: [*B] the sampled ids.
    sampler_logp: [*B] their log-probs when they were sampled.
  """

  student_logp: Float[Array, '*B V']
  logps: dict[str, Float[Array, '*B V']]
  token: Int[Array, '*B']
  sampler_logp: Float[Array, '*B']


Objective = Callable[[TokenBatch], Float[Array, '*B']]


class Term(NamedTuple):
  """One summand of the loss: coef * reduce(weight * objective).

  Attributes:
    objective: TokenBatch -> [*B] losses.
    weight: TokenStats -> [*B], how much each token counts; a constant to the
      gradient.
    coef: a number or a traced scalar. A schedule hands in a new value at each
      step without a retrace.
  """

  objective: Objective
  weight: Callable[[TokenStats], Float[Array, '*B']] = uniform
  coef: Scalar = 1.0


def matching(
  divergence: Callable, *, support: Callable = full, target: Callable = teacher
) -> Objective:
  """An exact divergence to the target at every token: the default of OPD.

  Args:
    divergence: (student_logp, target_logp), [*B, K] -> [*B].
    support: (student_logp, target_logp), [*B, V] -> two [*B, K].
    target: dict of [*B, V] -> [*B, V]. Constant.

  Returns:
    An objective.

  Gradients: those of the divergence, through the student's side only.

  Example: reverse KL on the teacher's top 64 and a bucket for the rest.
    >>> from functools import partial
    >>> from jopd.losses import reverse_kl, top_k
    >>> objective = matching(reverse_kl, support=partial(top_k, k=64))
  """

  def objective(batch):
    target_logp = jax.lax.stop_gradient(target(batch.logps))
    return divergence(*support(batch.student_logp, target_logp))

  return objective


def sampled(penalty: Callable, *, target: Callable = teacher) -> Objective:
  """A penalty on the sampled token alone, differentiated as it stands.

  Args:
    penalty: (student_logp, target_logp), [*B] -> [*B]: `k2` or `k3`.
    target: dict of [*B, V] -> [*B, V]. Constant.

  Returns:
    An objective.

  Gradients: see `penalties`; unbiased only for tokens sampled from the student.
  """

  def objective(batch):
    target_logp = jax.lax.stop_gradient(target(batch.logps))
    return penalty(
      pick(batch.student_logp, batch.token), pick(target_logp, batch.token)
    )

  return objective


def policy_gradient(
  surrogate: Callable,
  *,
  credit: Callable[[TokenStats], Float[Array, '*B']] = log_ratio,
  anchor: str = 'student',
  target: Callable = teacher,
) -> Objective:
  """A policy gradient on the sampled token, with a credit read from its stats.

  Args:
    surrogate: (student_logp, anchor_logp, credit), [*B] -> [*B].
    credit: TokenStats -> [*B]. Constant.
    anchor: the policy that the ratio is taken to. 'student': ratio 1, for one
      update per rollout. 'sampler': importance weighting, for several.
    target: dict of [*B, V] -> [*B, V], which the stats compare with. Constant.

  Returns:
    An objective.

  Gradients: with `log_ratio`, the expectation is exactly that of the full
    reverse KL at each token: with anchor 'student' for tokens sampled from the
    student, with 'sampler' (and `reinforce`) from any policy that covers it.
  Raises: ValueError when anchor is none of the two.
  """
  if anchor not in ('student', 'sampler'):
    raise ValueError(f"anchor must be 'student' or 'sampler', got {anchor!r}")

  def objective(batch):
    stats = batch_stats(batch, target)
    student_logp = pick(batch.student_logp, batch.token)
    anchor_logp = {
      'student': stats.student_logp,
      'sampler': stats.sampler_logp,
    }[anchor]
    return surrogate(
      student_logp,
      jax.lax.stop_gradient(anchor_logp),
      jax.lax.stop_gradient(credit(stats)),
    )

  return objective


def negative_log_likelihood() -> Objective:
  """Imitation of the tokens, -log p(token): SFT. Needs no teacher.

  Returns:
    An objective.

  Gradients: -grad log p(token).
  """

  def objective(batch):
    return -finite(pick(batch.student_logp, batch.token))

  return objective


def batch_stats(batch: TokenBatch, target: Callable) -> TokenStats:
  """The stats of a batch against a target, or without one if no teacher is.

  Gradients: none; stats are constants.
  """
  target_logp = target(batch.logps) if batch.logps else None
  return token_stats(
    batch.student_logp, target_logp, batch.token, batch.sampler_logp
  )


def blank(tree, mask: Bool[Array, '*B']):
  """The arrays of a tree, [*B, ...], set to zero where the mask is False.

  Done before any arithmetic: a NaN that is multiplied by a zero weight, or that
  meets a zero cotangent on the way back, is still a NaN.

  Gradients: identity where the mask is True, exactly 0 elsewhere.
  """

  def one(x):
    where = mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))
    return jnp.where(where, x, jnp.zeros_like(x))

  return jax.tree.map(one, tree)


def per_token_losses(
  batch: TokenBatch, terms: Mapping[str, Term], stats: TokenStats
) -> dict[str, Float[Array, '*B']]:
  """Weight * objective of each term, before coefficient and reduction.

  Args:
    batch: TokenBatch.
    terms: the terms, by name.
    stats: what the weights read.

  Returns:
    [*B] for each name.

  Gradients: to batch.student_logp, through the objectives only.
  """
  return {
    name: jax.lax.stop_gradient(term.weight(stats)) * term.objective(batch)
    for name, term in terms.items()
  }


def distill_loss(
  batch: TokenBatch,
  terms: Mapping[str, Term],
  *,
  mask: Bool[Array, 'B T'],
  reduce: Callable = token_mean,
  count: Scalar,
  stats_target: Callable = teacher,
) -> Float[Array, '']:
  """The loss, from log-probs: sum of coef * reduce(weight * objective).

  The plain definition, for other JAX code and for small vocabularies. It holds
  [B, T, V]; `distill_loss_chunked` has the same value and gradients without.

  Args:
    batch: TokenBatch of [B, T, ...].
    terms: the terms, by name.
    mask: [B, T], True counts. Anything may stand elsewhere, NaN too.
    reduce: (per_token, mask, count) -> scalar, linear in per_token.
    count: the denominator of `reduce`, of the whole batch: micro-batches that
      share one count add up.
    stats_target: the target that the stats read by weights compare with. Not
      called when there is no teacher.

  Returns:
    A scalar: nats per token, with `token_mean` and divergences.

  Gradients: to batch.student_logp; exactly 0 where the mask is False.
  Raises: ValueError when terms is empty, or a target names no teacher.

  Example: one token of two, reverse KL 0.1308.
    >>> import jax.numpy as jnp
    >>> from jopd.losses import reverse_kl
    >>> p, q = jnp.array([[[0.25, 0.75]]]), jnp.array([[[0.5, 0.5]]])
    >>> batch = TokenBatch(
    ...   student_logp=jnp.log(p),
    ...   logps={'teacher': jnp.log(q)},
    ...   token=jnp.array([[1]]),
    ...   sampler_logp=jnp.array([[0.0]]),
    ... )
    >>> terms = {'opd': Term(matching(reverse_kl))}
    >>> loss = distill_loss(batch, terms, mask=jnp.array([[True]]), count=1)
    >>> round(float(loss), 4)
    0.1308
  """
  if not terms:
    raise ValueError('expected at least one term, got none')
  batch = blank(batch, mask)
  losses = per_token_losses(batch, terms, batch_stats(batch, stats_target))
  return sum(
    term.coef * reduce(losses[name], mask, count)
    for name, term in terms.items()
  )
