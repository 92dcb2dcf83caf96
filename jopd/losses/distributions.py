"""Log-probs of logits, and what every loss takes from them."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from jaxtyping import ScalarLike as Scalar

# What log 0 counts as. exp(LOG_ZERO) is exactly 0 in float32, so 0 * log 0
# comes out as 0 with no special case, and an infinite divergence comes out huge
# but finite: it shows in the loss, and its gradient is never NaN.
LOG_ZERO = -1e9


def log_probs(
  logits: Float[Array, '*B V'], *, temperature: Scalar = 1.0
) -> Float[Array, '*B V']:
  """Log-probs at a temperature: log softmax(logits / temperature).

  The only place where a temperature is applied; call it with the same one for
  student and target, or identical models get a loss. No T squared anywhere.

  Args:
    logits: [*B, V] unnormalised, any float dtype. -inf means impossible.
    temperature: scalar > 0, may be traced.

  Returns:
    [*B, V] log-probs in nats, float32 whatever the dtype of the logits.

  Gradients: to the logits.
  Numerics: float32 before the division; logits of 1e4 and more are fine. A row
    of -inf alone is NaN.

  Example:
    >>> logp = log_probs(jnp.log(jnp.array([1.0, 3.0])))
    >>> [round(float(p), 4) for p in jnp.exp(logp)]
    [0.25, 0.75]
  """
  return jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)


def finite(logp: Float[Array, '*B']) -> Float[Array, '*B']:
  """Log-probs with -inf replaced by LOG_ZERO, where the gradient is 0.

  Args:
    logp: [*B] log-probs. NaN stays NaN: it is a fault, not an impossibility.

  Returns:
    [*B] log-probs, at least LOG_ZERO.

  Gradients: identity, except 0 where logp was -inf.
  """
  # `maximum` says the same, but its derivative costs a division per entry.
  return jnp.where(logp < LOG_ZERO, LOG_ZERO, logp)


def token_logp(
  logp: Float[Array, '*B V'], token: Int[Array, '*B']
) -> Float[Array, '*B']:
  """The log-prob of one token per place: logp[..., token].

  Args:
    logp: [*B, V] log-probs.
    token: [*B] ids in [0, V).

  Returns:
    [*B] log-probs, nats. NaN for an id of V or more.

  Gradients: to logp at the token.

  Example:
    >>> float(token_logp(jnp.array([-3.0, -1.0]), jnp.array(1)))
    -1.0
  """
  return jnp.take_along_axis(logp, token[..., None], axis=-1)[..., 0]


def entropy(logp: Float[Array, '*B V']) -> Float[Array, '*B']:
  """Shannon entropy, -sum_v p_v log p_v, in nats.

  Args:
    logp: [*B, V] log-probs; -inf counts as p = 0.

  Returns:
    [*B] entropies, between 0 and log V.

  Gradients: to logp.

  Example:
    >>> round(float(entropy(jnp.log(jnp.array([0.5, 0.5])))), 4)
    0.6931
  """
  logp = finite(logp)
  return -jnp.sum(jnp.exp(logp) * logp, axis=-1)


def top_indices(logp: Float[Array, '*B V'], k: int) -> Int[Array, '*B K']:
  """Ids of the k likeliest tokens, best first; among equals, any.

  Exact. With V sharded over devices, each searches its own part, and only the
  maxima of groups and the candidates travel, never the logits.

  Args:
    logp: [*B, V] log-probs, float32 (other dtypes are slow on a CPU).
    k: static int, 1 <= k <= V.

  Returns:
    [*B, k] ids.

  Gradients: none; an index is locally constant.
  """
  # Two-dimensional float32 is the one form with a fast path on CPUs.
  rows = jax.lax.stop_gradient(logp).reshape(-1, logp.shape[-1])
  vocab = rows.shape[1]
  size = group_size(vocab, k)
  if size == 1:
    index = jax.lax.top_k(rows, k)[1]
  else:
    # The k best lie in the k groups with the largest maxima. Group g holds the
    # ids that are g modulo V / size, so that if the vocabulary is cut into
    # contiguous shards, each has the same number of ids of every group.
    groups = rows.reshape(len(rows), size, -1)
    group = jax.lax.top_k(jnp.max(groups, axis=1), k)[1]
    group = jnp.broadcast_to(group[:, None], (len(rows), size, k))
    ids = group + groups.shape[2] * jnp.arange(size)[None, :, None]
    candidates = jnp.take_along_axis(groups, group, axis=2)
    ids, candidates = (x.reshape(len(rows), -1) for x in (ids, candidates))
    best = jax.lax.top_k(candidates, k)[1]
    index = jnp.take_along_axis(ids, best, axis=-1)
  return index.reshape(*logp.shape[:-1], k)


def group_size(vocab: int, k: int) -> int:
  """Ids per group in the search for the k likeliest; 1 is no groups.

  About as many groups as candidates make the search shortest. A power of two
  that divides the vocabulary: shards of it are searched apart when there are
  2, 4, 8 or, with a k of no more than a few hundred, 16 of them.

  Gradients: none; plain numbers.
  """
  if vocab < 128 * k:
    return 1
  size = 2 ** round(math.log2(vocab / k) / 2)
  return math.gcd(size, vocab)
