"""Routed experts: a feed-forward of which each token uses a few parts.

No token is dropped and no expert has a capacity, so a token's result depends
on itself alone, as the contract of a model asks; padding takes nothing from
real tokens.
"""

from collections.abc import Callable
import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jopd.models.architecture import DecoderConfig
from jopd.models.weights import ACTIVATIONS, weight

ByRows = Callable[[Callable[[Array, Any], Array]], Callable[..., Array]]
"""From f(x [B, ...], weights) to the same, on each device's rows apart."""


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
  """Returns the mean of the likeliest experts, weighted by their likelihood.

  Tokens are sorted by expert, so that three ragged products do the work of all
  experts, each on its own tokens. TPUs have kernels for them, but not for the
  gradients of the weights; those, and on a CPU all of them, become products of
  every token with every expert, masked.

  Args:
    x: [B, L, D]. Gradient flows to it and to all weights.
    weights: router [D, E], gate and up [E, D, F], down [E, F, D].
    chosen: static int, k <= E: how many experts a token uses.
    normed: whether the likelihoods of the chosen add up to 1.
    activation: of the gate.

  Returns:
    [B, L, D] in the dtype of `x`.

  Gradients: through the likelihoods of the chosen experts; the choice itself
    has none. There is no loss that balances the load.
  Numerics: likelihoods in float32, rounded to the dtype of `x`.
  References: Qwen3 Technical Report, arXiv 2505.09388; Shazeer et al.,
    arXiv 1701.06538.
  """
  router, gate, up, down = weights
  batch, length, width = x.shape
  tokens = x.reshape(batch * length, width)
  likelihood = jax.nn.softmax((tokens @ router).astype(jnp.float32), axis=-1)
  share, expert = jax.lax.top_k(likelihood, chosen)
  if normed:
    share /= jnp.sum(share, axis=-1, keepdims=True)

  # Slot j of the sorted ones is choice order[j] % k of token order[j] // k.
  order = jnp.argsort(expert.reshape(-1))
  count = jnp.bincount(expert.reshape(-1), length=router.shape[1])
  mine = tokens[order // chosen]
  hidden = activation(jax.lax.ragged_dot(mine, gate, count))
  hidden *= jax.lax.ragged_dot(mine, up, count)
  out = jax.lax.ragged_dot(hidden, down, count)[jnp.argsort(order)]

  out = out.reshape(batch * length, chosen, width)
  out = jnp.sum(out * share.astype(x.dtype)[..., None], axis=1)
  return out.reshape(x.shape)
