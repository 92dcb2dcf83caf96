"""Weights of tokens: (TokenStats) -> [*B], constants to the gradient.

What one paper alone needs is in `jopd.papers`.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float
from jaxtyping import ScalarLike as Scalar

from jopd.losses.advantages import reward
from jopd.losses.token_stats import (
  TokenStats,
  group_sum,
  live_rows,
  names_reward,
  reads,
  row_mean,
  same_group,
  stat_named,
)
from jopd.losses.validation import check_range


@reads('token')
def uniform(stats: TokenStats) -> Float[Array, '*B']:
  """Every token counts 1.

  Args:
    stats: TokenStats.

  Returns:
    [*B] ones.

  Gradients: none; a weight is a constant.
  """
  return jnp.ones_like(stats.student_logp)


@reads('token', reward=names_reward)
def gate(
  stats: TokenStats,
  *,
  of: str,
  low: Scalar = -jnp.inf,
  high: Scalar = jnp.inf,
) -> Float[Array, '*B']:
  """1 where low <= stat <= high, 0 elsewhere.

  Args:
    stats: TokenStats.
    of: which of its fields, such as 'target_entropy', or 'log_ratio'.
    low: the least value that counts, in the field's unit.
    high: the largest.

  Returns:
    [*B] weights, 0 or 1.

  Gradients: none; a weight is a constant.
  Raises: ValueError when there is no such stat.

  Example: two nats of entropy pass, half a nat does not.
    >>> stats = TokenStats(target_entropy=jnp.array([2.0, 0.5]))
    >>> gate(stats, of='target_entropy', low=0.8).tolist()
    [1.0, 0.0]
  """
  value = stat_named(stats, of)
  return ((low <= value) & (value <= high)).astype(jnp.float32)


@reads('token', sampler=True)
def importance(
  stats: TokenStats, *, low: Scalar = 0.0, high: Scalar = 2.0
) -> Float[Array, '*B']:
  """Truncated importance, min(p / mu, high), and 0 below low.

  mu is the distribution that sampled the token. Corrects the expectation of a
  loss for rollouts that are not quite the student's: another precision, top-p,
  a few updates ago. It corrects each token at its own prefix, not the prefix.

  Args:
    stats: TokenStats with the sampler's log-probs.
    low: tokens of a smaller ratio are dropped.
    high: the largest weight. The truncation is a bias that bounds the variance.

  Returns:
    [*B] weights in [0, high], without unit.

  Gradients: none; a weight is a constant. For the ratio's own gradient old_policy a
    policy gradient to the sampler.

  Example: ratios of 1/2 and 4.
    >>> stats = TokenStats(
    ...   student_logp=jnp.log(jnp.array([0.1, 0.8])),
    ...   sampler_logp=jnp.log(jnp.array([0.2, 0.2])),
    ... )
    >>> [round(float(w), 4) for w in importance(stats)]
    [0.5, 2.0]
  """
  ratio = jnp.exp(stats.student_logp - stats.sampler_logp)
  return jnp.where(ratio < low, 0.0, jnp.minimum(ratio, high))


@reads('batch', reward=names_reward)
def top_fraction(
  stats: TokenStats, *, of: str, fraction: Scalar
) -> Float[Array, '*B']:
  """1 at the given fraction of the batch's tokens with the largest stat.

  The threshold is a quantile over all tokens that count, so this weight looks
  at the whole batch. The sum of the weights is `fraction` of the tokens: divide
  the coefficient by it for a mean over those that are left.

  Args:
    stats: TokenStats of the batch, [B, T].
    of: which of its fields, such as 'student_entropy'.
    fraction: in (0, 1], may be traced. At least one token counts, and all that
      tie with the threshold.

  Returns:
    [*B] weights, 0 or 1.

  Gradients: none; a weight is a constant.
  Raises: ValueError when there is no such stat, or fraction is outside (0, 1].

  Example: of four tokens one does not count, and 2/3 of the others are two.
    >>> stats = TokenStats(
    ...   student_entropy=jnp.array([3.0, 1.0, 9.0, 2.0]),
    ...   mask=jnp.array([True, True, False, True]),
    ... )
    >>> top_fraction(stats, of='student_entropy', fraction=2 / 3).tolist()
    [1.0, 0.0, 0.0, 1.0]
  """
  return _largest(stats, stat_named(stats, of), fraction)


@reads('batch')
def normalized(
  stats: TokenStats, *, weight: Callable[[TokenStats], Float[Array, '*B']]
) -> Float[Array, '*B']:
  """A weight divided by its mean over the batch, so that tokens count 1 on it.

  With a weight of 0 or 1 the loss is then a mean over the tokens that are left.

  Args:
    stats: TokenStats of the batch, [B, T].
    weight: TokenStats -> [B, T], >= 0.

  Returns:
    [*B] weights of mean 1 over the tokens that count; zeros if all are.

  Gradients: none; a weight is a constant.

  Example:
    >>> stats = TokenStats(
    ...   mask=jnp.array([True, True, False]),
    ... )
    >>> half = lambda stats: jnp.array([1.0, 0.0, 1.0])
    >>> normalized(stats, weight=half).tolist()
    [2.0, 0.0, 2.0]
  """
  each = weight(stats)
  mean = jnp.mean(each, where=stats.mask)
  return each / jnp.where(mean > 0, mean, 1.0)


def _largest(stats: TokenStats, value, fraction: Scalar):
  """1 at the given fraction of the tokens that count, by their value."""
  check_range('(0, 1]', fraction=fraction)
  value = jnp.where(stats.mask, value, -jnp.inf)
  # A rank and not an interpolated quantile: the same threshold on any mesh.
  descending = -jnp.sort(-value.ravel())
  kept = jnp.round(fraction * jnp.sum(stats.mask)).astype(int)
  threshold = descending[jnp.maximum(kept - 1, 0)]
  return (stats.mask & (value >= threshold)).astype(jnp.float32)


@reads('batch')
def top_informative(
  stats: TokenStats, *, fraction: Scalar
) -> Float[Array, '*B']:
  """1 at the fraction of tokens with the largest h + q - h q: TIP's soft or.

  h grows with the student's entropy, q with its reverse KL to the target, each
  as 1 - exp(-nats), in [0, 1): a token is worth learning where the student
  hesitates, or where it is sure and wrong. Divide the coefficient by fraction,
  or take `normalized`, for a mean over those that are left.

  Args:
    stats: TokenStats of the batch, [B, T], with a target.
    fraction: in (0, 1], may be traced. 1 keeps every token.

  Returns:
    [*B] weights, 0 or 1.

  Gradients: none; a weight is a constant.
  Raises: ValueError when fraction is outside (0, 1].
  References: TIP, Token Importance in On-Policy Distillation, arXiv 2604.14084,
    known to us by its abstract; how it normalises h and q was not found, and
    its released code samples by another score.

  Example: unsure; sure and wrong; sure and right.
    >>> stats = TokenStats(
    ...   student_entropy=jnp.array([1.0, 0.0, 0.0]),
    ...   reverse_kl=jnp.array([0.0, 2.0, 0.1]),
    ...   mask=jnp.ones(3, bool),
    ... )
    >>> top_informative(stats, fraction=2 / 3).tolist()
    [1.0, 1.0, 0.0]
  """
  # (1 - e^-H) or (1 - e^-KL) is 1 - e^-(H + KL): the order is that of the sum.
  score = stats.student_entropy + stat_named(stats, 'reverse_kl')
  return _largest(stats, score, fraction)


@reads('group', reward=True)
def best_row(stats: TokenStats, *, least: float = 1.0) -> Float[Array, 'B T']:
  """The one row of a group to learn from: right, and near to the student.

  For several responses of teachers to one prompt, of which the stage names the
  better sources first. In this order: a right one before a wrong one; one of an
  earlier source; the one with most tokens among the student's top 16.

  Args:
    stats: TokenStats of whole groups, [B, T], with a target.
    least: the reward that makes a response right.

  Returns:
    [B, T] weights: at the chosen row the number of the group's rows that count,
    so that `sequence_mean` is the mean over what was chosen; 0 elsewhere.

  Gradients: none; a weight is a constant.
  Raises: ValueError when nobody graded, or there is no target.
  References: BRTS, arXiv 2605.09725. Its tiers: two responses of the teacher,
    and if both are wrong one that was told the answer, if that is right, or
    else the nearest of the two. The overlap of the released code is with the
    student's top tokens at the same places; here the student reads the
    teacher's prefix there.

  Example: both are right, and the second is more familiar.
    >>> stats = TokenStats(
    ...   in_top=jnp.array([[0.0, 1.0], [1.0, 1.0]]),
    ...   reward=jnp.ones((2, 2)),
    ...   source=jnp.ones((2, 2), int),
    ...   group=jnp.zeros((2, 2), int),
    ...   mask=jnp.ones((2, 2), bool),
    ... )
    >>> best_row(stats)[:, 0].tolist()
    [0.0, 2.0]
  """
  same = same_group(stats)
  # Shares are at most 1, so each rank outdoes all below it.
  rank = row_mean(stats, stat_named(stats, 'in_top')) - 2.0 * stats.source[:, 0]
  rank += jnp.where(reward(stats)[:, 0] >= least, 1e4, 0.0)
  best = jnp.argmax(jnp.where(same, rank[None, :], -jnp.inf), axis=1)
  chosen = (best == jnp.arange(len(best))) & live_rows(stats)
  weight = jnp.where(chosen, jnp.sum(same, axis=1), 0).astype(jnp.float32)
  return jnp.broadcast_to(weight[:, None], stats.mask.shape)


@reads(
  'group',
  reward=lambda *, of, rows, **_: rows != 'every' or names_reward(of=of),
)
def group_softmax(
  stats: TokenStats,
  *,
  of: str,
  scale: float = 1.0,
  rows: str = 'every',
  least: float = 1.0,
) -> Float[Array, 'B T']:
  """Shares n softmax(scale * mean of a stat) over the rows of a group.

  Rows compete for their group's attention: of those that take part the weights
  sum to their number n, so their mean is 1; the others have 0. With the mean
  log-prob under a model, perplexity^(-scale) of that model decides.

  Args:
    stats: TokenStats of whole groups, [B, T].
    of: which of its fields, such as 'target_logp'.
    scale: 1 / tau; negative for the least instead of the most.
    rows: 'right', of at least the reward `least`, 'wrong' or 'every'.
    least: the reward that is enough.

  Returns:
    [B, T] weights >= 0, the same for all tokens of a row.

  Gradients: none; a weight is a constant.
  Numerics: a single row has weight 1.
  Raises: ValueError when there is no such stat or rows, or nobody graded.
  References: SCOPE, arXiv 2604.10688. On wrong responses the distillation, of
    'target_logp', scale 1 / tau; on right ones imitation, of 'student_logp',
    scale -1 / tau, so that unlikely ones weigh more. The released code has the
    opposite sign on the latter; this follows the formula of its page.

  Example: perplexities 2 and 4, so 2/3 and 1/3 of two rows.
    >>> stats = TokenStats(
    ...   target_logp=jnp.log(jnp.array([[1 / 2], [1 / 4]])),
    ...   group=jnp.zeros((2, 1), int),
    ...   mask=jnp.ones((2, 1), bool),
    ... )
    >>> [round(float(w[0]), 4) for w in group_softmax(stats, of='target_logp')]
    [1.3333, 0.6667]
  """
  known = ('right', 'wrong', 'every')
  if rows not in known:
    raise ValueError(f'rows must be one of {known}, got {rows!r}')
  take = live_rows(stats)
  if rows != 'every':
    take &= (reward(stats)[:, 0] >= least) == (rows == 'right')
  same = same_group(stats) & take[None, :]
  logits = scale * row_mean(stats, stat_named(stats, of))
  most = jnp.max(jnp.where(same, logits[None, :], -jnp.inf), axis=1)
  shares = jnp.where(take, jnp.exp(logits - jnp.where(take, most, 0.0)), 0.0)
  total = jnp.where(take, group_sum(same, shares), 1.0)
  weight = jnp.sum(same, axis=1) * shares / total
  return jnp.broadcast_to(weight[:, None], stats.mask.shape)


@reads('row')
def ahead_of_disagreement(
  stats: TokenStats, *, most: Scalar = 1.5
) -> Float[Array, 'B T']:
  """More before student and teacher have parted, 1 + (most - 1) (1 - F).

  F is the share of the response's |log q - log p| that lies before the token.
  Late tokens stand on prefixes that the teacher would not have written, so what
  it says of them is worth less.

  Args:
    stats: TokenStats of whole rows, [B, T], with a target.
    most: >= 1, the weight of the first token; may be traced. 1 is `uniform`.

  Returns:
    [B, T] weights in [1, most], falling along the row.

  Gradients: none; a weight is a constant.
  Raises: ValueError when most is below 1.
  References: IW-OPD, Position Bias of On-Policy Distillation, arXiv 2606.22600.

  Example: of the disagreement, 0, 1/4 and 3/4 lie before the three tokens.
    >>> stats = TokenStats(
    ...   student_logp=jnp.zeros((1, 3)),
    ...   sampler_logp=jnp.zeros((1, 3)),
    ...   group=jnp.zeros((1, 3), int),
    ...   target_logp=jnp.array([[-1.0, 2.0, -1.0]]),
    ...   mask=jnp.ones((1, 3), bool),
    ... )
    >>> ahead_of_disagreement(stats, most=2.0).tolist()
    [[2.0, 1.75, 1.25]]
  """
  check_range('[1, inf)', most=most)
  ratio = stat_named(stats, 'log_ratio')
  apart = jnp.where(stats.mask, jnp.abs(ratio), 0.0)
  before = jnp.cumsum(apart, axis=1) - apart
  total = jnp.sum(apart, axis=1, keepdims=True)
  share = before / jnp.where(total > 0, total, 1.0)
  return 1 + (most - 1) * (1 - share)


@reads('row', reward=names_reward)
def before_drop(
  stats: TokenStats, *, of: str = 'margin', segment: int = 16, least: int = 3
) -> Float[Array, 'B T']:
  """1 until a stat falls for good, 0 from there on: supervision that fades.

  The stat is averaged over segments; one fall of their mean is looked for, and
  believed if it lowers the Bayes information criterion: n log(RSS / n) and
  log n for each of one parameter without a fall, three with one.

  Args:
    stats: TokenStats of whole rows, [B, T].
    of: which of its fields. 'margin': how well the target can tell the
      student's likeliest tokens apart.
    segment: tokens in each, >= 1; static.
    least: segments on either side of a fall, >= 1; static.

  Returns:
    [B, T] weights, 0 or 1; all 1 where there is no fall.

  Gradients: none; a weight is a constant.
  Numerics: variances are held above 1e-12, so equal segments show no fall.
  Raises: ValueError when segment or least is below 1, or there is no such stat.
  References: Prefix Teach, Suffix Fade, arXiv 2605.13643, known to us by its
    abstract; the criterion is that of a third party's port. There segments are
    sentences, here they have equal lengths; the margin's form is ours.

  Example: three segments of 1, then three of 0.
    >>> stats = TokenStats(
    ...   student_logp=jnp.zeros((1, 6)),
    ...   target_logp=jnp.zeros((1, 6)),
    ...   sampler_logp=jnp.zeros((1, 6)),
    ...   group=jnp.zeros((1, 6), int),
    ...   margin=jnp.array([[1.0, 1.0, 1.0, 0.0, 0.0, 0.0]]),
    ...   mask=jnp.ones((1, 6), bool),
    ... )
    >>> before_drop(stats, segment=1).tolist()
    [[1.0, 1.0, 1.0, 0.0, 0.0, 0.0]]
  """
  check_range('[1, inf)', segment=segment, least=least)
  value = jnp.where(stats.mask, stat_named(stats, of), 0.0)
  # Slots that do not count belong to the segment of the last that does.
  own = jnp.maximum(jnp.cumsum(stats.mask, axis=1) - 1, 0) // segment
  segments = -(-value.shape[1] // segment)
  row = jnp.arange(len(value))[:, None]
  add = lambda x: jnp.zeros((len(value), segments)).at[row, own].add(x)
  tokens = add(stats.mask.astype(jnp.float32))
  means = add(value) / jnp.maximum(tokens, 1)
  first = _first_after_drop(means, tokens > 0, least)
  return (own < first[:, None]).astype(jnp.float32)


def _first_after_drop(means, real, least):
  """[B] the segment at which a row falls; their number where it does not."""
  count = jnp.sum(real, axis=1, keepdims=True)
  # Around the mean, or squares would cancel in float32.
  middle = jnp.sum(jnp.where(real, means, 0.0), axis=1, keepdims=True)
  centred = jnp.where(real, means - middle / jnp.maximum(count, 1), 0.0)
  left = jnp.arange(1, means.shape[1] + 1)[None, :]
  right = count - left
  sum_left = jnp.cumsum(centred, axis=1)
  total = jnp.sum(jnp.square(centred), axis=1, keepdims=True)
  # Of centred means, the right side sums to minus the left one.
  gain = jnp.square(sum_left) * (1 / left + 1 / jnp.maximum(right, 1))
  allowed = (left >= least) & (right >= least) & (sum_left > 0)
  best = jnp.argmax(jnp.where(allowed, gain, -1.0), axis=1)[:, None]
  gained = jnp.take_along_axis(gain, best, axis=1)
  size = jnp.maximum(count, 1)
  log_variance = lambda rss: jnp.log(jnp.maximum(rss / size, 1e-12))
  better = size * (log_variance(total) - log_variance(total - gained))
  fell = jnp.any(allowed, axis=1) & (better > 2 * jnp.log(size))[:, 0]
  return jnp.where(fell, best[:, 0] + 1, means.shape[1])


@reads('row', sampler=True)
def freshness(
  stats: TokenStats, *, alpha: Scalar = 1.0, least: Scalar = 0.0
) -> Float[Array, 'B T']:
  """Less where a response has aged, max(f - least, 0) of its row.

  f = exp(-alpha sqrt(D)) / (lag + 1). D is how far the student has moved since
  it spoke, the mean over the response of r - 1 - log r, with r = p / mu of the
  sampled tokens: KL(mu || p) without bias, and never negative. For a `replay`;
  without lag and without drift f is 1.

  Args:
    stats: TokenStats of whole rows, [B, T], with a lag.
    alpha: >= 0, may be traced; how much drift counts.
    least: in [0, 1), may be traced; f at which a response is not learnt at all.

  Returns:
    [B, T] weights in [0, 1], the same along a row.

  Gradients: none; a weight is a constant.
  Raises: ValueError when a setting is out of range, or no lag is known.
  References: f-OPD, arXiv 2605.17862, from notes on it: its settings are not
    known to us. There a second drift, of what a teacher said long ago, enters
    f; here teachers score when the student learns, so there is none. Its test
    for when a buffer is refreshed is not in here.

  Example: nothing has moved, and one update was made since.
    >>> stats = TokenStats(
    ...   student_logp=jnp.zeros((1, 2)),
    ...   target_logp=jnp.zeros((1, 2)),
    ...   sampler_logp=jnp.zeros((1, 2)),
    ...   group=jnp.zeros((1, 2), int),
    ...   staleness=jnp.ones((1, 2)),
    ...   mask=jnp.ones((1, 2), bool),
    ... )
    >>> freshness(stats).tolist(), freshness(stats, least=0.4).tolist()
    ([[0.5, 0.5]], [[0.09999999403953552, 0.09999999403953552]])
  """
  check_range('[0, inf)', alpha=alpha)
  check_range('[0, 1)', least=least)
  lag = stat_named(stats, 'staleness')
  drift = jnp.where(stats.mask, _drift(stats), 0.0)
  tokens = jnp.maximum(jnp.sum(stats.mask, axis=1, keepdims=True), 1)
  mean = jnp.sum(drift, axis=1, keepdims=True) / tokens
  fresh = jnp.exp(-alpha * jnp.sqrt(mean)) / (lag + 1)
  return jnp.maximum(fresh - least, 0.0)


def _drift(stats: TokenStats):
  """P / mu - 1 - log(p / mu) of each token, >= 0 whatever the rounding."""
  gap = jnp.minimum(stats.student_logp - stats.sampler_logp, 20.0)
  return jnp.maximum(jnp.expm1(gap) - gap, 0.0)


@reads('row', sampler=True)
def prefix_importance(
  stats: TokenStats, *, high: float = 2.0
) -> Float[Array, 'B T']:
  """Importance over several steps, min(prod over u <= t of p / mu, high).

  Where `importance` corrects a token at a prefix that is taken as it is, this
  one corrects how often the prefix comes, too. Its variance grows with the
  length, so that it is for short responses, or a small lag.

  Args:
    stats: TokenStats of whole rows, [B, T], with the sampler's log-probs.
    high: > 0, the largest weight; a bias that bounds the variance.

  Returns:
    [B, T] weights in [0, high], without unit.

  Gradients: none; a weight is a constant.
  Raises: ValueError when high is not above 0.
  References: importance over several steps among the corrections that AsyncOPD
    compares, arXiv 2606.24143, from its abstract; the truncation is ours.

  Example: ratios of 1/2, 1/2 and 12 multiply to 3.
    >>> p = jnp.log(jnp.array([[0.5, 0.5, 12.0]]))
    >>> stats = TokenStats(
    ...   target_logp=jnp.zeros((1, 3)),
    ...   sampler_logp=jnp.zeros((1, 3)),
    ...   group=jnp.zeros((1, 3), int),
    ...   student_logp=p,
    ...   mask=jnp.ones((1, 3), bool),
    ... )
    >>> [round(w, 4) for w in prefix_importance(stats).tolist()[0]]
    [0.5, 0.25, 2.0]
  """
  check_range('(0, inf)', high=high)
  gap = stats.student_logp - stats.sampler_logp
  total = jnp.cumsum(jnp.where(stats.mask, gap, 0.0), axis=1)
  return jnp.exp(jnp.minimum(total, jnp.log(high)))
