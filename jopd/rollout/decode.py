"""The policy that responses are sampled from, as functions of its weights."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from jopd.models.api import KVCache, Model
from jopd.models.int8 import Int8, dequantize, quantize, quantize_params
from jopd.rollout.sampling import SampledToken, SamplingParams, sample_token


class Policy(NamedTuple):
  """What the sampler needs of a model, or of several that act together.

  A cache is any pytree of arrays [rows, K, length, N].

  Attributes:
    prepare: (params) -> weights. Called once per rollout.
    prefill: (weights, prompt [b, P]) -> cache of length P.
    init_cache: (rows, length) -> cache of zeros.
    step: (weights, cache, token [C], position [C]) -> (logits [C, V] that are
      sampled from, logp [C, V] that is recorded or None for that of the
      logits, cache). All float32, before temperature.
  """

  prepare: Callable[[Any], Any]
  prefill: Callable[[Any, Array], Any]
  init_cache: Callable[[int, int], Any]
  step: Callable[..., tuple[Array, Array | None, Any]]


class Weights(NamedTuple):
  """Parameters in the form that decoding reads fastest."""

  params: dict  # one entry per layer; matrices may be `Int8`
  head: Array | Int8  # [V, D]


def make_policy(
  model: Model,
  *,
  vocab_size: int | None = None,
  dtype: DTypeLike = jnp.float32,
  int8: bool = False,
) -> Policy:
  """The policy of one model.

  Args:
    model: `apply` runs with a cache; `head` gives the logits.
    vocab_size: ids from here on are padding of the head, never sampled.
    dtype: of the computation and the cache.
    int8: rounds the matrices to eight bits; see `models.int8`.
  """

  def prefill(weights: Weights, prompt: Array) -> KVCache:
    params = dequantize(weights.params, dtype)
    return model.apply(params, prompt, None, init_cache(*prompt.shape))[1]

  def init_cache(rows: int, length: int) -> KVCache:
    return model.init_cache(rows, length, dtype)

  return Policy(
    prepare=lambda params: prepare_params(
      model, params, vocab_size, dtype, int8
    ),
    prefill=prefill,
    init_cache=init_cache,
    step=lambda weights, cache, token, position: decode_logits(
      model, weights, cache, token, position, dtype
    ),
  )


def prepare_params(model: Model, params, vocab_size, dtype, int8) -> Weights:
  """Parameters and head in a dtype, with one entry per layer."""
  head = model.head(params)[:vocab_size]
  if int8:
    params = quantize_params(params, model.axes)
    head = quantize(head, shared=(1,))
  # Slicing layers here, once, spares a copy of all weights at every token.
  params = model.unstack(params)
  floating = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
  cast = lambda x: x.astype(dtype) if floating(x) else x
  return Weights(*jax.tree.map(cast, (params, head)))


def decode_logits(
  model: Model, weights: Weights, cache: KVCache, token, position, dtype
) -> tuple[Array, None, KVCache]:
  """The `step` of the policy of one model."""
  # Inside the loop, so that each token reads eight bits from memory.
  params, head = dequantize(tuple(weights), dtype)
  hidden, cache = model.apply(params, token[:, None], position, cache)
  logits = jnp.einsum(
    'bd,vd->bv', hidden[:, 0], head, preferred_element_type=jnp.float32
  )
  return logits, None, cache


def sample_next(
  logits: Array, logp: Array | None, keys: Array, sampling: SamplingParams
) -> SampledToken:
  """`sample_token`, with the token's `logp` from another distribution if given.

  Args:
    logits: [C, V] that are sampled from.
    logp: [C, V] of the distribution whose log-prob is recorded, or None.
    keys: [C].
    sampling: [C].
  """
  sampled = sample_token(logits, keys, sampling)
  if logp is None:
    return sampled
  logp = jnp.take_along_axis(logp, sampled.token[:, None], axis=-1)[:, 0]
  return sampled._replace(logp=logp)
