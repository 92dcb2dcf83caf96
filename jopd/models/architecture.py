"""The architecture of a decoder, and the declaration of its weights."""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp

from jopd.models.rope import Scaling

ACTIVATIONS = {'silu': jax.nn.silu, 'gelu_tanh': jax.nn.gelu}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
  """All that determines the shapes and the forward pass.

  Attributes:
    vocab_size: V.
    layers: number of blocks.
    embed: D, the width of the residual stream.
    heads: H, query heads.
    kv_heads: K, key-value heads; divides `heads`.
    head_dim: N; even; need not be D / H.
    mlp: F, the hidden width of the feed-forward, or of one expert.
    experts: E, how many experts each feed-forward has; 0 for none.
    experts_per_token: k, how many of them a token uses.
    experts_normed: whether the probabilities of these k are normalized to sum
      to 1.
    router_aux_loss: coefficient of the load-balancing loss of pretraining.
      Unused here; kept for `config.json`.
    rope_theta: base of the rotary angles.
    rope_scaling: scaling of the angles for contexts longer than in
      pretraining; None for none.
    window: positions that a query of a sliding-window layer attends to, with
      its own. None without such layers.
    sliding: for each layer, whether it has a sliding window; () for none.
    local_rope_theta: base of the angles in sliding-window layers, which are
      not scaled; None for the base of the other layers.
    attention_scale: factor of the scores; None for N^-1/2.
    embed_scale: factor of the input embeddings.
    norm_eps: added to the mean square in every RMS norm.
    tied: whether the input embedding is also the head.
    qkv_bias: biases on queries, keys and values (Qwen2).
    qk_norm: RMS norm over N of queries and keys (Qwen3, Gemma 3).
    post_norms: norms also after attention and feed-forward (Gemma 3).
    centered_norms: norms multiply by 1 + their weights (Gemma 3).
    activation: of the feed-forward, 'silu' or 'gelu_tanh'.
    init_scale: standard deviation of random weights.
    max_positions: context length of pretraining. The forward pass does not
      use it; it bounds the lengths of a run.
    family: Hugging Face's `model_type`, which determines the files.

  Raises: ValueError when fields are inconsistent.
  """

  vocab_size: int
  layers: int
  embed: int
  heads: int
  kv_heads: int
  head_dim: int
  mlp: int
  experts: int = 0
  experts_per_token: int = 0
  experts_normed: bool = False
  router_aux_loss: float = 0.0
  rope_theta: float = 10_000.0
  rope_scaling: Scaling | None = None
  window: int | None = None
  sliding: tuple[bool, ...] = ()
  local_rope_theta: float | None = None
  attention_scale: float | None = None
  embed_scale: float = 1.0
  norm_eps: float = 1e-6
  tied: bool = False
  qkv_bias: bool = False
  qk_norm: bool = False
  post_norms: bool = False
  centered_norms: bool = False
  activation: str = 'silu'
  init_scale: float = 0.02
  max_positions: int = 32_768
  family: str = 'qwen3'

  def size(self, axis: str) -> int:
    """Length of a logical axis."""
    return self.vocab_size if axis == 'vocab' else getattr(self, axis)

  def __post_init__(self):
    for name in (
      'vocab_size',
      'layers',
      'embed',
      'kv_heads',
      'head_dim',
      'mlp',
    ):
      if getattr(self, name) < 1:
        raise ValueError(f'{name} = {getattr(self, name)} must be at least 1')
    if self.heads % self.kv_heads:
      raise ValueError(
        f'heads = {self.heads} is not a multiple of kv_heads = '
        f'{self.kv_heads}: query heads share key-value heads in equal groups'
      )
    if self.head_dim % 2:
      raise ValueError(
        f'head_dim = {self.head_dim} is odd: rotary embeddings need pairs'
      )
    if len(self.sliding) not in (0, self.layers):
      raise ValueError(
        f'sliding has {len(self.sliding)} entries for {self.layers} layers'
      )
    if any(self.sliding) != (self.window is not None):
      raise ValueError(
        f'window = {self.window}, but sliding is true for '
        f'{sum(self.sliding)} layers: give both or none'
      )
    if not min(self.experts, 1) <= self.experts_per_token <= self.experts:
      raise ValueError(
        f'experts_per_token = {self.experts_per_token} must be in [1, experts '
        f'= {self.experts}], and 0 without experts'
      )
    if self.window is not None and self.window < 1:
      raise ValueError(f'window = {self.window} must be at least 1')


def weight(config: DecoderConfig, rngs: nnx.Rngs, *axes: str) -> nnx.Param:
  """A random weight; its logical axes determine its shape and sharding."""
  shape = tuple(config.size(axis) for axis in axes)
  values = jax.random.normal(rngs.params(), shape) * config.init_scale
  return nnx.Param(values, axes=axes)


def bias(config: DecoderConfig, *axes: str) -> nnx.Param:
  """A bias of zeros, declared likewise."""
  return nnx.Param(jnp.zeros([config.size(axis) for axis in axes]), axes=axes)
