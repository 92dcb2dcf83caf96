"""How much a token counts among those of its response."""

import jax.numpy as jnp
from jaxtyping import Array, Float
from jaxtyping import ScalarLike as Scalar

from jopd.losses.token_stats import TokenStats, names_reward, reads, stat_named
from jopd.losses.validation import check_range


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
