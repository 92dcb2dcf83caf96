"""Who writes a response: a model, or one with a second that has a say in it."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jopd.models.api import KVCache, Model
from jopd.models.int8 import Int8, dequantize, quantize, quantize_params
from jopd.rollout.continuous_batching import Slots
from jopd.rollout.sampling import SampledToken, SamplingParams, pick


class MixingTeacher(NamedTuple):
  """A model that reads along, and has a say in every token."""

  model: Model
  # (own, its) log-probs [B, V] -> those of what is sampled; see blends.py.
  blend: Callable


class Weights(NamedTuple):
  """A model's parameters as decoding likes them."""

  params: dict  # one entry per layer; matrices may be `Int8`
  head: Array | Int8  # [V, D]


def voices(model: Model, second: MixingTeacher | None) -> tuple[Model, ...]:
  """The models that read every token: one or two."""
  return (model,) if second is None else (model, second.model)


def prepare_params(
  model: Model, params, vocab_size, dtype, int8: bool
) -> Weights:
  """Parameters and head in a dtype, one layer apart from the other.

  Args:
    model: whose they are.
    params: its parameters.
    vocab_size: static; rows of the head, or None for all.
    dtype: static; of the floating arrays.
    int8: static; whether matrices are rounded to eight bits.
  """
  head = model.head(params)[:vocab_size]
  if int8:
    params = quantize_params(params, model.axes)
    head = quantize(head, shared=(1,))
  # Sliced per layer here, once, and not at every token of the loop.
  params = model.unstack(params)
  floating = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
  cast = lambda x: x.astype(dtype) if floating(x) else x
  return Weights(*jax.tree.map(cast, (params, head)))


def decode_logits(
  model: Model, weights: Weights, cache: KVCache, slots: Slots
) -> tuple[Array, KVCache]:
  """A model's logits of the next token in every slot, and its cache after."""
  # Here, and not before the loop: what each token reads is the eight bits.
  params, head = dequantize(tuple(weights), cache[0][0].dtype)
  hidden, cache = model.apply(
    params, slots.token[:, None], slots.position, cache
  )
  logits = jnp.einsum(
    'bd,vd->bv', hidden[:, 0], head, preferred_element_type=jnp.float32
  )
  return logits, cache


def choose(
  logits: tuple[Array, ...],
  keys: Array,
  how: SamplingParams,
  second: MixingTeacher | None,
) -> SampledToken:
  """A token per row; `pick` of the logits, or of the blend of two.

  Of a blend, `sampler_logp` is what was sampled, and `logp` the first model's.
  """
  if second is None:
    return pick(*logits, keys, how)
  own, other = map(jax.nn.log_softmax, logits)
  picked = pick(second.blend(own, other), keys, how)
  logp = jnp.take_along_axis(own, picked.token[:, None], axis=-1)[:, 0]
  return picked._replace(logp=logp)
