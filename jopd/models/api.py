"""What the rest of the library asks of a model, and nothing more.

A model here is a handful of pure functions over a plain pytree of arrays. Who
is behind them (Flax NNX, Linen, Haiku, a hundred lines of `jnp`) is invisible
to the sampler, the losses and the training step.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Float

Params = dict[str, Any]
"""Nested dict of arrays: what jit sees, the optimizer updates, a file holds."""

KVCache = list[tuple[Float[Array, 'B K S N'], Float[Array, 'B K S N']]]
"""Keys and values per layer; slot s of row b holds the token at position s."""


class Model(NamedTuple):
  """A causal language model as pure functions over a parameter pytree.

  Anything with these fields can be student or teacher. Wrapping a Flax module
  of your own takes `nnx.split` (or Linen's `apply`) and this tuple; see
  `decoder.make_model` and docs/models.md for examples. The contract:

  * Rows are padded on the right and there is no mask argument. One rule says
    what is seen: *a query at position p attends to positions 0..p of its own
    row, or to the last of these, and to nothing else.* So padding, which lies
    to the right of every real token, cannot influence one.
  * `apply` stops at the final norm. Logits are `hidden @ head(params).T`, and
    the caller decides for which positions they are worth computing; they are
    raw (temperature 1, float32 if the caller accumulates in float32).
  * The computation runs in the dtype of the params. Norm statistics, rotary
    angles and the softmax of attention are float32 whatever that is.
  * `apply` is traceable, keeps no state and draws no random numbers: the same
    arguments give the same result, while sampling and while scoring.

  Attributes:
    config: Hashable description of the architecture; `DecoderConfig` for the
      families of this room. File formats look inside, and whoever checks
      lengths reads its `max_positions`.
    init: `(key) -> params`. Random float32 parameters.
    apply: `(params, tokens [B, L] int, start [B] int | None = None,
      cache: KVCache | None = None) -> (hidden [B, L, D], cache | None)`.
      Token j of row b stands at position `start[b] + j` (None means 0).
      Without a cache, the L tokens see each other only. With a cache, their
      keys and values are first written to slots `start[b] + j` of the row and
      slots up to each token's position are read; a write beyond the last slot
      is dropped. Junk written past a row's length is therefore never read: it
      is overwritten by the real token of that slot before any query reaches
      it. Differentiable in `params`. In place of a layer's matrix there may be
      an `int8.Int8` or a `lora.LowRank`: `apply` puts each layer's params
      through `lora.widen`.
    head: `(params) -> [V, D]`. The output embedding; with tied embeddings the
      same array as the input embedding.
    init_cache: `(batch, length, dtype) -> KVCache` of zeros with `length`
      slots per row. The dtype should be that of the params, or the cache
      rounds what `apply` without a cache would not.
    axes: Pytree like `params` with, for each array, a tuple of logical axis
      names, one per dimension: 'vocab', 'embed', 'layers', 'heads',
      'kv_heads', 'head_dim', 'mlp', 'experts' or None. `jopd.sharding` turns
      them into shardings.
    vocab_size: V, the number of rows of the head. May exceed the tokenizer's
      vocabulary where a family pads it.
    unstack: `(params) -> params` as `apply` with a cache likes them best: a
      decoding loop calls it once before its first token, since slicing layers
      out of a stack inside the loop copies every weight at every token. The
      identity where nothing is stacked.
  """

  config: Any
  init: Callable[[Array], Params]
  apply: Callable[..., tuple[Float[Array, 'B L D'], KVCache | None]]
  head: Callable[[Params], Float[Array, 'V D']]
  init_cache: Callable[..., KVCache]
  axes: dict[str, Any]
  vocab_size: int
  unstack: Callable[[Params], Params] = lambda params: params
