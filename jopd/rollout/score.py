"""Scores given responses by teacher forcing."""

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jopd.models.api import Model


def score(
  model: Model,
  params,
  prompt: Int[Array, 'B P'],
  prompt_length: Int[Array, 'B'],
  response: Int[Array, 'B T'],
) -> Float[Array, 'B T D']:
  """Hidden states that predict the response: out[b, t] predicts response[b, t].

  This is the only place that shifts predictions against tokens: all arrays
  [B, T] of jopd are aligned with the response. Prompts may differ between
  models (a teacher may read more than the student), responses may not.

  Args:
    model: whose `apply` runs, without a cache.
    params: its parameters.
    prompt: [B, P] token ids, right-padded.
    prompt_length: [B] real tokens per prompt, at least 1.
    response: [B, T] token ids, right-padded. Its length is not needed, since
      padding does not affect earlier positions of a causal model.

  Returns:
    [B, T, D] hidden states after the final norm, in the dtype of params. Values
    beyond the length of a response are finite, and the caller masks them.

  Gradients: to params.
  """
  tokens = _join(prompt, prompt_length, response)
  hidden, _ = model.apply(params, tokens)
  steps = response.shape[1]
  window = lambda row, start: lax.dynamic_slice_in_dim(row, start, steps)
  return jax.vmap(window)(hidden, prompt_length - 1)


def _join(prompt, prompt_length, response):
  """[B, P + T], each response directly after its prompt."""
  steps = response.shape[1]
  slot = jnp.arange(prompt.shape[1] + steps)[None, :]
  offset = jnp.clip(slot - prompt_length[:, None], 0, steps - 1)
  padded = jnp.pad(prompt, ((0, 0), (0, steps)))
  after = jnp.take_along_axis(response, offset, axis=1)
  return jnp.where(slot < prompt_length[:, None], padded, after)
