"""From logits to a token: temperature, top-k, top-p, min-p, greedy.

Every setting is an array with one entry per row. Rows may differ in them, and
other values need no new compilation.
"""

from collections.abc import Callable
import operator
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key
import numpy as np

# The bits of a float32 >= 0 grow with it, so to look for a cutoff among weights
# in [0, 1] is to look among the integers up to these, the bits of 1.
_ONE = 0x3F800000
# Cutoffs tried at once; more than 3 save passes, but no time on a CPU.
_PIVOTS = 3


class SamplingParams(NamedTuple):
  """How each row is sampled; see `make_sampling_params`."""

  temperature: Array  # [B] float32; 0 is greedy
  top_k: Array  # [B] int32; 0 keeps every token
  top_p: Array  # [B] float32; 1 keeps every token
  min_p: Array  # [B] float32; 0 keeps every token
  max_new_tokens: Array  # [B] int32


def make_sampling_params(
  batch: int,
  *,
  max_new_tokens: ArrayLike = 1,
  temperature: ArrayLike = 1.0,
  top_k: int = 0,
  top_p: float = 1.0,
  min_p: float = 0.0,
) -> SamplingParams:
  """Settings of `batch` rows.

  Args:
    batch: number of rows.
    max_new_tokens: >= 1, or [batch] of these; most tokens of a response.
    temperature: >= 0, or [batch] of these; divides the logits; 0 is greedy.
    top_k: >= 0; only the k likeliest tokens are sampled; 0 for all.
    top_p: in (0, 1]; only the smallest set of likeliest tokens whose mass
      reaches top_p is sampled.
    min_p: in [0, 1]; only tokens at least min_p times as likely as the
      likeliest are sampled.

  Raises: ValueError when a setting is outside its range.
  """
  if not np.all(np.greater_equal(max_new_tokens, 1)):
    raise ValueError(f'max_new_tokens must be >= 1; got {max_new_tokens}')
  if not np.all(np.greater_equal(temperature, 0)):
    raise ValueError(
      f'temperature must be >= 0 (0 is greedy); got {temperature}'
    )
  if top_k < 0:
    raise ValueError(f'top_k must be >= 0 (0 keeps all); got {top_k}')
  if not 0 < top_p <= 1:
    raise ValueError(f'top_p must be in (0, 1]; got {top_p}')
  if not 0 <= min_p <= 1:
    raise ValueError(f'min_p must be in [0, 1]; got {min_p}')
  return SamplingParams(
    jnp.full(batch, temperature, jnp.float32),
    jnp.full(batch, top_k, jnp.int32),
    jnp.full(batch, top_p, jnp.float32),
    jnp.full(batch, min_p, jnp.float32),
    jnp.full(batch, max_new_tokens, jnp.int32),
  )


class SampledToken(NamedTuple):
  """A token per row, and how likely it was."""

  token: Array  # [B] int32
  logp: Array  # [B] under softmax(logits): temperature 1, no filter
  sampler_logp: Array  # [B] under the distribution that was sampled


def sample_token(
  logits: Float[Array, 'B V'], key: Key[Array, 'B'], sampling: SamplingParams
) -> SampledToken:
  """One token per row, drawn from softmax(filter(logits / temperature)).

  The filters come in the order of transformers: temperature, then
  top-k, then top-p inside what top-k left, then min-p. Each keeps the tokens
  whose weight, exp(logit / temperature - the row's largest) in float32, is at
  least a cutoff, so tokens that tie with the last one kept are kept too.
  Nothing is sorted; see `_cutoff`. The draw inverts the cumulative distribution
  on two levels (a group of the vocabulary, then a token of the group), which
  is exact and needs two uniforms a row where the Gumbel trick needs V.

  Args:
    logits: [B, V] of the next token, float32, at temperature 1.
    key: [B] one key per row; a row's token depends on its own key and logits
      only, so not on its neighbours in the batch.
    sampling: [B] settings.

  Returns:
    `SampledToken`; log-probs in nats. A greedy row has sampler_logp 0.

  Gradients: none are meant; log-probs for a loss come from `score`.
  Numerics: -inf logits are never sampled while a finite one exists. Top-k is
    exact. Top-p is that of float64 for a top_p that differs from the one given
    by less than 1e-5 * (1 - top_p) + 2e-8: the sum of the weights is rounded
    to float32; those below the cutoff are summed exactly, in integers.
  """
  greedy = sampling.temperature == 0
  temperature = jnp.where(greedy, 1.0, sampling.temperature)
  scaled = logits / temperature[:, None]
  peak = jnp.max(scaled, axis=-1)
  weight = jnp.exp(scaled - peak[:, None])
  total = jnp.sum(weight, axis=-1)
  log_normalizer = lax.cond(
    jnp.any(temperature != 1),
    lambda: jax.nn.logsumexp(logits, axis=-1),
    lambda: peak + jnp.log(total),
  )
  cutoff = _smallest_kept(weight, total, sampling)
  weight = lax.cond(
    jnp.any(cutoff > 0),
    lambda: jnp.where(weight >= cutoff[:, None], weight, 0.0),
    lambda: weight,
  )
  drawn, mass = _inverse_cdf(weight, key)
  token = lax.cond(
    jnp.any(greedy),
    lambda: jnp.where(greedy, _argmax(logits), drawn),
    lambda: drawn,
  )
  logit = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
  sampler_logp = logit / temperature - peak - jnp.log(mass)
  return SampledToken(
    token=token,
    logp=logit - log_normalizer,
    sampler_logp=jnp.where(greedy, 0.0, sampler_logp),
  )


def _smallest_kept(
  weight: Float[Array, 'B V'],
  total: Float[Array, 'B'],
  sampling: SamplingParams,
) -> Float[Array, 'B']:
  """The weight below which the filters exclude a token."""
  nothing = jnp.zeros_like(total)
  sampled = sampling.temperature != 0
  top_k = jnp.where(sampled, sampling.top_k, 0)
  top_p = jnp.where(sampled, sampling.top_p, 1.0)
  cutoff = lax.cond(
    jnp.any(top_k > 0),
    lambda: _top_k_cutoff(weight, top_k),
    lambda: nothing,
  )
  cutoff = lax.cond(
    jnp.any(top_p < 1),
    lambda: jnp.maximum(cutoff, _top_p_cutoff(weight, total, top_p, cutoff)),
    lambda: cutoff,
  )
  return jnp.maximum(cutoff, sampling.min_p)


def _top_k_cutoff(weight, top_k):
  """The weight of the k-th likeliest token, or 0 where top_k is 0."""
  spare = jnp.where(top_k > 0, weight.shape[-1] - top_k, -1)
  return _cutoff(
    weight,
    jnp.where(spare > 0, 0.0, -1.0),
    lambda w: [jnp.ones_like(w, jnp.int32)],
    lambda count: count <= spare[:, None],
  )


def _top_p_cutoff(weight, total, top_p, least):
  """The largest cutoff that leaves top_p of the mass of weights >= least."""
  vocab = weight.shape[-1]
  total = lax.cond(
    jnp.any(least > 0),
    lambda: jnp.sum(jnp.where(weight >= least[:, None], weight, 0.0), axis=-1),
    lambda: total,
  )
  # Masses are integers, which add up exactly in any order: units of 2^-30 of
  # the total, and of the rest, units 2^fine smaller. No sum can reach 2^31.
  scale = 2.0**30 / total
  fine = 31 - (vocab - 1).bit_length()

  def mass(w):
    units = jnp.where(w >= least[:, None], w * scale[:, None], 0.0)
    whole = units.astype(jnp.int32)
    rest = (units - whole.astype(jnp.float32)) * 2.0**fine
    return [whole, rest.astype(jnp.int32)]

  spare = (1 - top_p) * 2.0**30

  def fits(whole, rest):
    whole += rest >> fine
    rest = (rest & (2**fine - 1)).astype(jnp.float32) * 2.0**-fine
    return whole.astype(jnp.float32) + rest <= spare[:, None]

  # Weights below this are not even together more than is spare.
  floor = 0.99 * (1 - top_p) * total / vocab
  start = jnp.where(top_p < 1, jnp.maximum(least, floor), -1.0)
  return _cutoff(weight, start, mass, fits)


def _cutoff(
  weight: Float[Array, 'B V'],
  start: Float[Array, 'B'],
  price: Callable,
  fits: Callable,
) -> Float[Array, 'B']:
  """The largest weight of a row such that what is smaller `fits`.

  Each pass over the weights sums the price of those below a few pivots, and so
  narrows the interval of the cutoff, which then shrinks to the smallest and
  largest weight inside. The search ends when these are the same, so ties need
  no further passes.

  Args:
    weight: [B, V] in [0, 1], with a 1 in every row.
    start: [B] where what is smaller is known to fit; rows where it is negative
      are left out, and get 0.
    price: from weights to a list of integers of their shape.
    fits: from the sums of these, [B, pivots] each, to bool [B, pivots].
  """
  bits = lax.bitcast_convert_type(weight, jnp.int32)
  searched = start >= 0

  def narrow(interval):
    low, high = interval  # what is below low fits; below high, it does not
    step = jnp.maximum((high - low) // (_PIVOTS + 1), 1)
    pivots = low[:, None] + step[:, None] * jnp.arange(1, _PIVOTS + 1)[None]
    pivots = jnp.minimum(pivots, high[:, None] - 1)
    prices = price(weight)
    sums, least, most = _sums_and_bounds(
      [
        jnp.where(bits < pivots[:, i, None], x, 0)
        for x in prices
        for i in range(_PIVOTS)
      ],
      jnp.where(bits >= low[:, None], bits, _ONE),
      jnp.where(bits < high[:, None], bits, 0),
    )
    fit = fits(*jnp.split(jnp.stack(sums, axis=-1), len(prices), axis=-1))
    low = jnp.max(jnp.where(fit, pivots, least[:, None]), axis=-1)
    high = jnp.min(jnp.where(fit, most[:, None] + 1, pivots), axis=-1)
    return jnp.maximum(low, least), jnp.minimum(high, most + 1)

  low = lax.bitcast_convert_type(jnp.where(searched, start, 0.0), jnp.int32)
  low, _ = lax.while_loop(
    lambda interval: jnp.any(interval[1] - interval[0] > 1),
    narrow,
    (low, jnp.where(searched, _ONE + 1, low + 1)),
  )
  return jnp.where(searched, lax.bitcast_convert_type(low, jnp.float32), 0.0)


def _sums_and_bounds(terms, lower, upper):
  """The [B] sum of each term, minimum of lower, maximum of upper; one pass."""
  n = len(terms)
  out = lax.reduce(
    (*terms, lower, upper),
    (*[jnp.int32(0)] * n, jnp.int32(_ONE), jnp.int32(0)),
    lambda a, b: (
      *map(operator.add, a[:n], b[:n]),
      jnp.minimum(a[n], b[n]),
      jnp.maximum(a[n + 1], b[n + 1]),
    ),
    dimensions=(1,),
  )
  return out[:n], out[n], out[n + 1]


def _inverse_cdf(
  weight: Float[Array, 'B V'], key: Key[Array, 'B']
) -> tuple[Int[Array, 'B'], Float[Array, 'B']]:
  """A token per row with probability weight / sum(weight), and that sum."""
  grouped = _grouped(weight, 0.0)
  mass = jnp.sum(grouped, axis=-1)
  uniform = jax.vmap(lambda k: jax.random.uniform(k, (2,)))(key)
  group = _first_beyond(mass, uniform[:, 0])
  inside = jnp.take_along_axis(grouped, group[:, None, None], axis=1)[:, 0]
  token = group * grouped.shape[-1] + _first_beyond(inside, uniform[:, 1])
  return token, jnp.sum(mass, axis=-1)


def _first_beyond(weight, uniform):
  """First index whose cumulative weight exceeds uniform * total."""
  cumulative = jnp.cumsum(weight, axis=-1)
  beyond = cumulative > uniform[:, None] * cumulative[:, -1:]
  # A parallel cumulative sum may step up by a rounding error at a zero weight.
  beyond &= weight > 0
  first = jnp.argmax(beyond, axis=-1)
  likeliest = jnp.argmax(weight, axis=-1)
  index = jnp.where(jnp.any(beyond, axis=-1), first, likeliest)
  return index.astype(jnp.int32)


def _argmax(logits: Float[Array, 'B V']) -> Int[Array, 'B']:
  """jnp.argmax, first index on ties, at a fraction of its cost on a CPU."""
  grouped = _grouped(logits, -jnp.inf)
  group = jnp.argmax(jnp.max(grouped, axis=-1), axis=-1)
  inside = jnp.take_along_axis(grouped, group[:, None, None], axis=1)[:, 0]
  token = group * grouped.shape[-1] + jnp.argmax(inside, axis=-1)
  return token.astype(jnp.int32)


def _grouped(x: Float[Array, 'B V'], fill) -> Float[Array, 'B G S']:
  """Splits the vocabulary into about sqrt(V) groups, padded at the end."""
  batch, vocab = x.shape
  root = max(1, round(vocab**0.5))
  # A size that divides V spares a copy.
  sizes = [s for s in range(root // 4 + 1, 4 * root) if vocab % s == 0]
  size = min(sizes or [root], key=lambda s: abs(s - root))
  groups = -(-vocab // size)
  short = groups * size - vocab
  padded = jnp.pad(x, ((0, 0), (0, short)), constant_values=fill)
  return padded.reshape(batch, groups, size)
