"""From next-token logits to a token: temperature, top-k, top-p, greedy.

Every setting is an array with one entry per row, so that a change of setting,
or rows that differ in it, compile nothing.
"""

from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

# Top-p needs the largest logits in order. The nucleus of a language model
# rarely holds more than a few dozen tokens, so the sort is over this many and
# only falls back to the whole vocabulary where a row's nucleus is wider.
_SORTED = 256


class Sampling(NamedTuple):
  """How to sample: one entry per row, see `sampling`."""

  temperature: Array  # [B] float32; 0 is greedy
  top_k: Array  # [B] int32; 0 keeps every token
  top_p: Array  # [B] float32; 1 keeps every token


def sampling(
  batch: int,
  *,
  temperature: float = 1.0,
  top_k: int = 0,
  top_p: float = 1.0,
) -> Sampling:
  """The same settings for each of `batch` rows.

  Args:
    batch: number of rows.
    temperature: >= 0; the logits are divided by it; 0 is greedy.
    top_k: >= 0; only the k likeliest tokens can be picked; 0 for all.
    top_p: in (0, 1]; only the smallest set of likeliest tokens whose mass
      reaches top_p can be picked.

  Returns:
    A `Sampling` of [batch] arrays.

  Raises:
    ValueError: a setting is outside its range.
  """
  if not temperature >= 0:
    raise ValueError(
      f'temperature must be >= 0 (0 is greedy); got {temperature}'
    )
  if top_k < 0:
    raise ValueError(f'top_k must be >= 0 (0 keeps all); got {top_k}')
  if not 0 < top_p <= 1:
    raise ValueError(f'top_p must be in (0, 1]; got {top_p}')
  return Sampling(
    jnp.full(batch, temperature, jnp.float32),
    jnp.full(batch, top_k, jnp.int32),
    jnp.full(batch, top_p, jnp.float32),
  )


class Picked(NamedTuple):
  """A token per row, and how likely it was."""

  token: Array  # [B] int32
  logp: Array  # [B] under softmax(logits): temperature 1, no filter
  sampler_logp: Array  # [B] under the distribution that was sampled


def pick(
  logits: Float[Array, 'B V'], key: Key[Array, 'B'], how: Sampling
) -> Picked:
  """One token per row, drawn from softmax(filter(logits / temperature)).

  The filters follow the order of the field (transformers, vLLM): temperature,
  then top-k, then top-p inside what top-k left. Tokens that tie with the last
  one kept are kept too. The draw inverts the cumulative distribution on two
  levels (a group of the vocabulary, then a token of the group), which is exact
  and needs two uniforms a row where the Gumbel trick needs V.

  Args:
    logits: [B, V] of the next token, float32, at temperature 1.
    key: [B] one key per row; a row's token depends on its own key and logits
      only, so not on its neighbours in the batch.
    how: [B] settings; see `sampling`.

  Returns:
    `Picked`; log-probs in nats. A greedy row has sampler_logp 0.

  Gradients: none are meant; log-probs for a loss come from `score`.
  Numerics: -inf logits are never picked while a finite one exists.
  """
  greedy = how.temperature == 0
  temperature = jnp.where(greedy, 1.0, how.temperature)
  scaled = logits / temperature[:, None]
  filtered = (how.top_k > 0) | (how.top_p < 1)
  scaled = lax.cond(
    jnp.any(filtered & ~greedy),
    lambda: _keep(scaled, how, filtered),
    lambda: scaled,
  )
  peak = jnp.max(scaled, axis=-1, keepdims=True)
  weight = jnp.exp(scaled - peak)
  drawn = _inverse_cdf(weight, key)
  token = lax.cond(
    jnp.any(greedy),
    lambda: jnp.where(greedy, _argmax(logits), drawn),
    lambda: drawn,
  )
  at = lambda x: jnp.take_along_axis(x, token[:, None], axis=-1)[:, 0]
  sampler_logp = at(scaled) - peak[:, 0] - jnp.log(jnp.sum(weight, axis=-1))
  return Picked(
    token=token,
    logp=at(logits) - jax.nn.logsumexp(logits, axis=-1),
    sampler_logp=jnp.where(greedy, 0.0, sampler_logp),
  )


def _keep(
  scaled: Float[Array, 'B V'], how: Sampling, filtered: Bool[Array, 'B']
) -> Float[Array, 'B V']:
  """-inf where top-k or top-p shut a token out, in the rows they filter."""
  vocab = scaled.shape[-1]
  first = min(_SORTED, vocab)
  cutoff, complete = _cutoff(scaled, how, first)
  if first < vocab:
    cutoff = lax.cond(
      jnp.all(complete | ~filtered),
      lambda: cutoff,
      lambda: _cutoff(scaled, how, vocab)[0],
    )
  cutoff = jnp.where(filtered, cutoff, -jnp.inf)
  return jnp.where(scaled >= cutoff[:, None], scaled, -jnp.inf)


def _cutoff(scaled, how, n):
  """Smallest logit kept, from the n largest; and whether n were enough."""
  vocab = scaled.shape[-1]
  top = lax.top_k(scaled, n)[0]
  top_k = jnp.where(how.top_k > 0, how.top_k, vocab)
  in_top_k = jnp.arange(n)[None, :] < top_k[:, None]
  mass = jnp.where(in_top_k, jnp.exp(top - top[:, :1]), 0.0)
  # Top-p is a share of what top-k left, which is everything if it is off.
  everything = jnp.sum(jnp.exp(scaled - top[:, :1]), axis=-1)
  total = jnp.where(top_k < vocab, jnp.sum(mass, axis=-1), everything)
  reached = jnp.cumsum(mass, axis=-1)
  enough = jnp.where(how.top_p < 1, how.top_p * total, jnp.inf)
  kept = in_top_k & (reached - mass < enough[:, None])
  cutoff = jnp.min(jnp.where(kept, top, jnp.inf), axis=-1)
  complete = (top_k <= n) | ((top_k >= vocab) & (reached[:, -1] >= enough))
  return cutoff, complete


def _inverse_cdf(
  weight: Float[Array, 'B V'], key: Key[Array, 'B']
) -> Int[Array, 'B']:
  """A category per row with probability weight / sum(weight)."""
  batch, vocab = weight.shape
  size = max(1, round(vocab**0.5))
  groups = -(-vocab // size)
  padded = jnp.pad(weight, ((0, 0), (0, groups * size - vocab)))
  grouped = padded.reshape(batch, groups, size)
  uniform = jax.vmap(lambda k: jax.random.uniform(k, (2,)))(key)
  group = _first_beyond(jnp.sum(grouped, axis=-1), uniform[:, 0])
  inside = jnp.take_along_axis(grouped, group[:, None, None], axis=1)[:, 0]
  return group * size + _first_beyond(inside, uniform[:, 1])


def _first_beyond(weight, uniform):
  """First index whose cumulative weight exceeds uniform * total."""
  cumulative = jnp.cumsum(weight, axis=-1)
  beyond = cumulative > uniform[:, None] * cumulative[:, -1:]
  # A parallel cumulative sum may step up by a rounding error at a zero weight.
  beyond &= weight > 0
  found = jnp.argmax(beyond, axis=-1)
  last = jnp.argmax(weight, axis=-1)
  return jnp.where(jnp.any(beyond, axis=-1), found, last).astype(jnp.int32)


def _argmax(logits: Float[Array, 'B V']) -> Int[Array, 'B']:
  """jnp.argmax, first index on ties, at a fraction of its cost on a CPU."""
  batch, vocab = logits.shape
  size = max(1, round(vocab**0.5))
  groups = -(-vocab // size)
  short = groups * size - vocab
  padded = jnp.pad(logits, ((0, 0), (0, short)), constant_values=-jnp.inf)
  grouped = padded.reshape(batch, groups, size)
  group = jnp.argmax(jnp.max(grouped, axis=-1), axis=-1)
  inside = jnp.take_along_axis(grouped, group[:, None, None], axis=1)[:, 0]
  return (group * size + jnp.argmax(inside, axis=-1)).astype(jnp.int32)
