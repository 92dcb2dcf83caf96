"""The two pure programs of an update: teachers score, the learner learns.

They are two so that a teacher's activations are gone before the student's
backward pass begins; what passes between them are hidden states, V / D times
smaller than logits. `steps.py` compiles and places them.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import optax

from jopd import losses
from jopd.models.api import Model
from jopd.rollout.score import score
from jopd.train.rollout_batch import RolloutBatch
from jopd.train.stage import Aggregation
from jopd.train.state import TrainState
from jopd.train.update_guard import judge, keep_if


class Gradients(NamedTuple):
  """What the first half of an update makes.

  Attributes:
    grads: of the trained parameters, float32.
    loss: scalar.
    metrics: name -> (sum, count).
    tokens: scalar, how many tokens any term learns from.
  """

  grads: dict
  loss: jax.Array
  metrics: dict
  tokens: jax.Array


def make_teach(
  teachers: Mapping[str, Model],
  *,
  parts: int = 1,
  rows_together: int = 1,
  compute_dtype=jnp.float32,
):
  """A function that runs every teacher over a batch.

  Args:
    teachers: role -> model.
    parts: M, the batch is scored in this many parts, one after the other.
    rows_together: consecutive rows that stay in one part.
    compute_dtype: the parameters are cast to it; matrices in eight bits are
      widened to it layer by layer.

  Returns:
    `teach(teacher_params, batch) -> {role: [M, B / M, T, D]}`, hidden states.
  """

  def teach(teacher_params, batch: RolloutBatch):
    teacher_params = cast(teacher_params, compute_dtype)

    def score_part(part: RolloutBatch):
      return {
        role: score(
          model,
          teacher_params[role],
          part.teachers[role].prompt,
          part.teachers[role].prompt_length,
          part.response,
        )
        for role, model in teachers.items()
      }

    return lax.map(score_part, split(batch, parts, rows_together))

  return teach


def make_gradients(
  student: Model,
  teachers: Mapping[str, Model],
  terms: Callable[[Mapping], Mapping[str, losses.Term]],
  *,
  aggregation: Aggregation,
  parts: int = 1,
  rows_together: int = 1,
  stats_rows: Callable | None = None,
  temperature: float = 1.0,
  compute_dtype=jnp.float32,
  chunk_tokens: int = 256,
  vocab_size: int | None = None,
  gather: Callable[[jax.Array], jax.Array] = lambda head: head,
  attach: Callable | None = None,
):
  """The first half of an update: forward, loss, backward over parts.

  Args:
    student: the model that learns.
    teachers: role -> model; of these, only the heads are used.
    terms: scalars -> the loss as named terms.
    aggregation: of tokens; its denominators, one of each term's rows, are
      taken over the whole batch before it is split, so parts add up exactly.
    parts: whose gradients are summed.
    rows_together: consecutive rows that stay in one part.
    stats_rows: the rows that the token stats among the metrics speak of, as in
      `losses.distill_loss_chunked`.
    temperature: of the loss, for student and teachers alike.
    compute_dtype: dtype of the student's forward and backward products; master
      weights, gradient sums and the loss are float32.
    chunk_tokens: tokens per slice of the loss.
    vocab_size: ids from here on are padding of the heads and get no mass.
    gather: puts a head where the loss reads it, as `sharding.gather_width`.
    attach: (base, state.params) -> the student's parameters, where the state
      holds adapters of a frozen base, as `models.lora.attach`.

  Returns:
    `gradients(state, heads, batch, base=None, scalars={}) -> Gradients`. Heads
    are role -> [V, D] of the frozen teachers. The batch has hidden states.
  """
  # With several teachers the metrics compare with the one called 'teacher'.
  role = 'teacher' if 'teacher' in teachers else min(teachers, default='')
  stats_target = partial(losses.teacher, role=role)

  def gradients(
    state: TrainState, heads, batch: RolloutBatch, base=None, scalars=None
  ) -> Gradients:
    named_terms = terms(scalars or {})
    synced = {
      role: teachers[role].head(params)
      for role, params in state.teachers.items()
    }
    heads = cast(heads | synced, compute_dtype)
    heads = {role: gather(head) for role, head in heads.items()}
    masks = losses.term_masks(named_terms, batch.row, batch.mask)
    count = {name: aggregation.count(mask) for name, mask in masks.items()}
    tokens = sum(jnp.sum(mask) for mask in masks.values())

    def loss_of(params, part: RolloutBatch):
      if attach:
        params = attach(cast(base, compute_dtype), params)
      else:
        params = cast(params, compute_dtype)
      return losses.distill_loss_chunked(
        score(student, params, part.prompt, part.prompt_length, part.response),
        gather(student.head(params)),
        {role: (part.teachers[role].hidden, heads[role]) for role in teachers},
        part.response,
        part.sampler_logp,
        named_terms,
        mask=part.mask,
        reduce=aggregation.reduce,
        count=count,
        chunk_tokens=chunk_tokens,
        temperature=temperature,
        vocab_size=vocab_size,
        # The learner's log-probs are to be compared at temperature 1 only.
        rollout_logp=part.rollout_logp if temperature == 1 else None,
        stats_target=stats_target,
        stats_rows=stats_rows,
        row=part.row,
      )

    def of_part(part: RolloutBatch):
      (loss, metrics), grads = jax.value_and_grad(loss_of, has_aux=True)(
        state.params, part
      )
      return grads, loss, metrics

    grads, loss, metrics = _sum_over_leading(
      of_part, split(batch, parts, rows_together)
    )
    return Gradients(grads, loss, metrics, tokens)

  return gradients


def make_learn(
  gradients: Callable,
  tx: optax.GradientTransformation,
  *,
  teacher_sync: Mapping[str, Callable] | None = None,
  grad_norm_spike: float = 0.0,
):
  """The update: gradients, whether they will do, optimizer, synced teachers.

  Args:
    gradients: of `make_gradients`.
    tx: optimizer, clipping included.
    teacher_sync: role -> function of `teacher_sync.py`, for the teachers whose
      parameters are in the state.
    grad_norm_spike: of `update_guard.judge`.

  Returns:
    `learn(state, heads, batch, base=None, scalars={}) -> (state, metrics)`.
    Heads and base are arguments: frozen, never donated. Metrics are
    name -> (sum, count). A batch without a token to learn from leaves the
    parameters as they are. An update whose loss or gradient is not finite, or
    jumps, leaves all of the state as it is but for the step and the guard; the
    metric `skipped_updates` is 1 then.
  """

  def learn(
    state: TrainState, heads, batch: RolloutBatch, base=None, scalars=None
  ):
    grads, loss, metrics, tokens = gradients(state, heads, batch, base, scalars)
    norm = optax.tree.norm(grads)
    made, guard = judge(state.guard, loss, norm, spike=grad_norm_spike)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    # Momentum would go on without evidence, and so would weight decay.
    updates = jax.tree.map(lambda u: jnp.where(tokens > 0, u, 0), updates)
    params = optax.apply_updates(state.params, updates)
    step = state.step + 1
    synced = {
      role: jax.tree.map(
        lambda old, new, sync=sync: sync(old, new, step),
        state.teachers[role],
        params,
      )
      for role, sync in (teacher_sync or {}).items()
    }
    changed = TrainState(step, params, opt_state, synced, guard)
    unchanged = state._replace(step=step, guard=guard)
    one = jnp.float32(1)
    metrics |= {
      'loss': (loss, one),
      'grad_norm': (norm, one),
      'skipped_updates': (jnp.float32(~made), one),
    }
    return keep_if(made, changed, unchanged), metrics

  return learn


def cast(params, dtype):
  """The parameters in a dtype; eight bits stay so, beside their scales."""
  floating = lambda p: jnp.issubdtype(p.dtype, jnp.floating)
  one = lambda p: p.astype(dtype) if floating(p) else p
  return jax.tree.map(one, params)


def split(
  batch: RolloutBatch, parts: int, rows_together: int = 1
) -> RolloutBatch:
  """[B, ...] -> [parts, B / parts, ...], every device keeping its own rows.

  Hidden states of teachers are split already.
  """

  def deal(x):
    rows = x.reshape(-1, parts, rows_together, *x.shape[1:]).swapaxes(0, 1)
    return rows.reshape(parts, -1, *x.shape[1:])

  whole = {r: t._replace(hidden=None) for r, t in batch.teachers.items()}
  dealt = jax.tree.map(deal, batch._replace(teachers=whole))
  teachers = {
    role: teacher._replace(hidden=batch.teachers[role].hidden)
    for role, teacher in dealt.teachers.items()
  }
  return dealt._replace(teachers=teachers)


def _sum_over_leading(function, xs):
  """sum_i function(xs[i]), holding one summand at a time."""
  first = jax.tree.map(lambda x: x[0], xs)
  zero = jax.tree.map(
    lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(function, first)
  )
  add = lambda total, x: (jax.tree.map(jnp.add, total, function(x)), None)
  return lax.scan(add, zero, xs)[0]
