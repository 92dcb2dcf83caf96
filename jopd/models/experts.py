"""Mixture of experts: each token uses a few of the feed-forwards of a layer.

Experts have no capacity and no token is dropped, so the result for a token
depends on that token alone, and padding does not affect real tokens.
"""

from collections.abc import Callable
import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jopd.models.architecture import ACTIVATIONS, DecoderConfig, weight

ByRows = Callable[[Callable[[Array, Any], Array]], Callable[..., Array]]
"""f(x [B, ...], weights) -> the same function, run on each device's rows."""


class Experts(nnx.Module):
  """sum over the chosen e of p_e down_e(activation(gate_e(x)) * up_e(x))."""

  def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
    self.router = weight(config, rngs, 'embed', 'experts')
    self.gate = weight(config, rngs, 'experts', 'embed', 'mlp')
    self.up = weight(config, rngs, 'experts', 'embed', 'mlp')
    self.down = weight(config, rngs, 'experts', 'mlp', 'embed')
    self.config = config

  def __call__(
    self, x: Float[Array, 'B L D'], by_rows: ByRows
  ) -> Float[Array, 'B L D']:
    weights = self.router, self.gate, self.up, self.down
    mix = functools.partial(
      mix_experts,
      chosen=self.config.experts_per_token,
      normed=self.config.experts_normed,
      activation=ACTIVATIONS[self.config.activation],
    )
    return by_rows(mix)(x, [w[...] for w in weights])


def mix_experts(
  x: Float[Array, 'B L D'],
  weights: list[Array],
  *,
  chosen: int,
  normed: bool,
  activation: Callable[[Array], Array] = jax.nn.silu,
) -> Float[Array, 'B L D']:
  """Returns the sum of the most probable experts, weighted by probability.

  Tokens are sorted by expert, so that three ragged products apply each
  expert to its own tokens. TPUs have kernels for them, but not for the
  gradients of the weights; these, and on a CPU all of them, become masked
  products of every token with every expert.

  Args:
    x: [B, L, D]. Gradient flows to it and to all weights.
    weights: router [D, E], gate and up [E, D, F], down [E, F, D].
    chosen: static int, k <= E; experts per token.
    normed: whether the probabilities of the chosen are normalized to sum to 1.
    activation: of the gate.

  Returns:
    [B, L, D] in the dtype of `x`.

  Gradients: through the probabilities of the chosen experts, not through the
    choice. There is no load-balancing loss.
  Numerics: probabilities in float32, rounded to the dtype of `x`.
  References: Qwen3 Technical Report, arXiv 2505.09388; Shazeer et al.,
    arXiv 1701.06538.
  """
  router, gate, up, down = weights
  batch, length, width = x.shape
  tokens = x.reshape(batch * length, width)
  probability = jax.nn.softmax((tokens @ router).astype(jnp.float32), axis=-1)
  share, expert = jax.lax.top_k(probability, chosen)
  if normed:
    share /= jnp.sum(share, axis=-1, keepdims=True)

  # Slot j of the sorted ones is choice order[j] % k of token order[j] // k.
  order = jnp.argsort(expert.reshape(-1))
  count = jnp.bincount(expert.reshape(-1), length=router.shape[1])
  sorted_tokens = tokens[order // chosen]
  hidden = activation(jax.lax.ragged_dot(sorted_tokens, gate, count))
  hidden *= jax.lax.ragged_dot(sorted_tokens, up, count)
  out = jax.lax.ragged_dot(hidden, down, count)[jnp.argsort(order)]

  out = out.reshape(batch * length, chosen, width)
  out = jnp.sum(out * share.astype(x.dtype)[..., None], axis=1)
  return out.reshape(x.shape)
