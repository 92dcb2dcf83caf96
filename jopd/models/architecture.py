"""What decides the shapes and the forward pass of a decoder."""

import dataclasses

from jopd.models.rope import Scaling


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
  """The architecture: whatever decides shapes or the result of the forward.

  Attributes:
    vocab_size: V.
    layers: number of blocks.
    embed: D, the width of the residual stream.
    heads: H, query heads.
    kv_heads: K, key-value heads; divides `heads`.
    head_dim: N; even, and free of D / H.
    mlp: F, the hidden width of the feed-forward, or of one expert.
    experts: E, how many experts each feed-forward has; 0 for none.
    experts_per_token: k, how many of them a token uses.
    experts_normed: whether the likelihoods of these k add up to 1.
    router_aux_loss: kept for files. The pretraining balanced the experts' load
      by it; distillation does not.
    rope_theta: base of the rotary angles.
    rope_scaling: how the angles are slowed down for contexts longer than those
      of the pretraining; None for not at all.
    window: in a sliding layer a query sees this many positions, its own among
      them. None where no layer slides.
    sliding: for each layer whether it slides; () where none does.
    local_rope_theta: base of the angles in layers that slide, which are not
      scaled; None for those of the other layers.
    attention_scale: factor of the scores; None for N^-1/2.
    embed_scale: factor of the input embeddings; 1.0 leaves them as they are.
    norm_eps: added to the mean square in every RMS norm.
    tied: whether the input embedding is also the head.
    qkv_bias: biases on queries, keys and values (Qwen2).
    qk_norm: RMS norm over N of queries and keys (Qwen3, Gemma 3).
    post_norms: norms also after attention and feed-forward (Gemma 3).
    centered_norms: norms multiply by 1 + their weights (Gemma 3).
    activation: of the feed-forward, 'silu' or 'gelu_tanh'.
    init_scale: standard deviation of random weights.
    max_positions: what the pretrained weights are good for. The forward does
      not read it; kept for files, and for whoever picks lengths.
    family: Hugging Face's `model_type`. The forward does not read it; it says
      which family's files hold such a model.

  Raises: ValueError when heads cannot be grouped or rotated, or layers and
    windows do not fit.
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
        f'head_dim = {self.head_dim} is odd: rotary angles turn pairs'
      )
    if len(self.sliding) not in (0, self.layers):
      raise ValueError(
        f'sliding says of {len(self.sliding)} layers whether they slide, but '
        f'there are {self.layers}'
      )
    if any(self.sliding) != (self.window is not None):
      raise ValueError(
        f'window = {self.window}, but {sum(self.sliding)} layers slide: give '
        'a window if and only if some do'
      )
    if not min(self.experts, 1) <= self.experts_per_token <= self.experts:
      raise ValueError(
        f'experts_per_token = {self.experts_per_token} must be in [1, experts '
        f'= {self.experts}], and 0 without experts'
      )
    if self.window is not None and self.window < 1:
      raise ValueError(f'window = {self.window} must be at least 1')
