"""The interface of a model: pure functions over a pytree of parameters.

The sampler, the losses and the training step use nothing else, so a model may
be implemented in Flax NNX, Linen, Haiku or plain `jnp`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Float

Params = dict[str, Any]
"""Nested dict of arrays."""

KVCache = list[tuple[Float[Array, 'B K S N'], Float[Array, 'B K S N']]]
"""Keys and values per layer; slot s of row b holds the token at position s."""


class Model(NamedTuple):
  """A causal language model as pure functions over a parameter pytree.

  Anything with these fields can be student or teacher. Wrapping a Flax module
  of your own takes `nnx.split` (or Linen's `apply`) and this tuple; see
  `decoder.make_model` and docs/models.md for examples. The contract:

  * Rows are padded on the right and there is no mask argument. *A query at
    position p attends to positions 0..p of its own row, or to the last of
    these, and to nothing else.* So padding, which is to the right of all real
    tokens, does not affect them.
  * `apply` stops at the final norm. Logits are `hidden @ head(params).T`, and
    the caller decides for which positions to compute them, at temperature 1.
  * The computation runs in the dtype of the params. Norm statistics, rotary
    angles and the softmax of attention are always float32.
  * `apply` is traceable, has no state and draws no random numbers.

  Attributes:
    config: Hashable description of the architecture; `DecoderConfig` for the
      families of jopd. File formats read it, and checks of lengths read its
      `max_positions`.
    init: `(key) -> params`. Random float32 parameters.
    apply: `(params, tokens [B, L] int, start [B] int | None = None,
      cache: KVCache | None = None) -> (hidden [B, L, D], cache | None)`.
      Token j of row b stands at position `start[b] + j` (None means 0).
      Without a cache, the L tokens attend to each other only. With a cache,
      their keys and values are first written to slots `start[b] + j` of the
      row, and slots up to each token's position are read; a write beyond the
      last slot is dropped. Values written past a row's length are overwritten
      by the real token of that slot before they are read. Differentiable in
      `params`. A matrix of a layer may be an `int8.Int8` or a `lora.LowRank`:
      `apply` converts the params of each layer with `lora.widen`.
    head: `(params) -> [V, D]`. The output embedding; with tied embeddings the
      same array as the input embedding.
    init_cache: `(batch, length, dtype) -> KVCache` of zeros with `length`
      slots per row. The dtype should be that of the params, or it rounds.
    axes: Pytree like `params` with, for each array, a tuple of logical axis
      names, one per dimension: 'vocab', 'embed', 'layers', 'heads',
      'kv_heads', 'head_dim', 'mlp', 'experts' or None. `jopd.sharding` turns
      them into shardings.
    vocab_size: V, the number of rows of the head. May exceed the tokenizer's
      vocabulary where a family pads it.
    unstack: `(params) -> params` in the form that `apply` with a cache reads
      fastest. A decoding loop calls it once: slicing layers out of a stack
      inside the loop would copy every weight at every token.
  """

  config: Any
  init: Callable[[Array], Params]
  apply: Callable[..., tuple[Float[Array, 'B L D'], KVCache | None]]
  head: Callable[[Params], Float[Array, 'V D']]
  init_cache: Callable[..., KVCache]
  axes: dict[str, Any]
  vocab_size: int
  unstack: Callable[[Params], Params] = lambda params: params
