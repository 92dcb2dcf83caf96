"""Rotary position embeddings and their scalings for long contexts.

A scaling is a small class whose fields have the names of `config.json`.
"""

import dataclasses
import math
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear:
  """All frequencies are divided by `factor`: positions are interpolated."""

  factor: float
  amplitude: ClassVar[float] = 1.0

  def __call__(
    self, frequency: Float[Array, ' half'], theta: float
  ) -> Float[Array, ' half']:
    """Returns the frequencies, scaled."""
    return frequency / self.factor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama3:
  """Only low frequencies are scaled, as in Llama 3.1.

  A pair with at least `high_freq_factor` turns over the original context is
  unchanged; the frequency of one with at most `low_freq_factor` turns is
  divided by `factor`; between them it is interpolated.
  """

  factor: float
  low_freq_factor: float
  high_freq_factor: float
  original_max_position_embeddings: int
  amplitude: ClassVar[float] = 1.0

  def __post_init__(self):
    if not self.low_freq_factor < self.high_freq_factor:
      raise ValueError(
        f'low_freq_factor = {self.low_freq_factor} must be less than '
        f'high_freq_factor = {self.high_freq_factor}'
      )

  def __call__(
    self, frequency: Float[Array, ' half'], theta: float
  ) -> Float[Array, ' half']:
    """Returns the frequencies, scaled."""
    turns = self.original_max_position_embeddings * frequency / (2 * math.pi)
    low, high = self.low_freq_factor, self.high_freq_factor
    share = jnp.clip((turns - low) / (high - low), 0, 1)
    return share * frequency + (1 - share) * frequency / self.factor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Yarn:
  """YaRN: low frequencies are scaled, and attention is sharpened.

  A pair with `beta_fast` turns over the original context is unchanged; the
  frequency of one with `beta_slow` turns is divided by `factor`; between them
  the change is linear in the index of the pair.

  References: Peng et al., YaRN, arXiv 2309.00071, section 3. As in released
    code, the ramp begins and ends at whole numbers if `truncate`.
  """

  factor: float
  original_max_position_embeddings: int
  attention_factor: float | None = None
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  truncate: bool = True

  @property
  def amplitude(self) -> float:
    """Factor of rotated queries and keys."""
    if self.attention_factor is not None:
      return self.attention_factor
    return 0.1 * math.log(self.factor) + 1 if self.factor > 1 else 1.0

  def __call__(
    self, frequency: Float[Array, ' half'], theta: float
  ) -> Float[Array, ' half']:
    """Returns the frequencies, scaled."""
    half, original = len(frequency), self.original_max_position_embeddings

    def pair_that_turns(times):
      return half * math.log(original / (times * 2 * math.pi)) / math.log(theta)

    first, last = map(pair_that_turns, (self.beta_fast, self.beta_slow))
    if self.truncate:
      first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * half - 1)
    last += 0.001 if first == last else 0
    slowed = jnp.clip((jnp.arange(half) - first) / (last - first), 0, 1)
    return (1 - slowed) * frequency + slowed * frequency / self.factor


Scaling = Linear | Llama3 | Yarn

SCALINGS = {'linear': Linear, 'llama3': Llama3, 'yarn': Yarn}
"""By `rope_type`; 'default' means no scaling."""


def frequencies(
  theta: float, scaling: Scaling | None, size: int
) -> Float[Array, ' half']:
  """Returns the angle per position of each pair of a head, in radians.

  Args:
    theta: the base; pair i has frequency theta^(-2i/N).
    scaling: of the frequencies, or None.
    size: N.
  """
  half = size // 2
  frequency = theta ** (-jnp.arange(half) / half)
  return frequency if scaling is None else scaling(frequency, theta)


def rotate(
  x: Float[Array, 'B L H N'],
  angle: Float[Array, '#B L N/2'],
  amplitude: float = 1.0,
) -> Float[Array, 'B L H N']:
  """Rotates the pairs (x[i], x[i + N/2]) by the angles of their position.

  Args:
    x: queries or keys.
    angle: in radians, float32.
    amplitude: factor of the result.
  """
  cos, sin = jnp.cos(angle)[:, :, None], jnp.sin(angle)[:, :, None]
  if amplitude != 1:
    cos, sin = cos * amplitude, sin * amplitude
  left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  turned = [left * cos - right * sin, right * cos + left * sin]
  return jnp.concatenate(turned, axis=-1).astype(x.dtype)
