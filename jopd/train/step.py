"""The two programs of a training step: teachers score, the learner learns.

They are two so that a teacher's activations are gone before the student's
backward pass begins; what passes between them are hidden states, V / D times
smaller than logits. Both are pure; the caller compiles and shards them.
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
from jopd.train.stage import Aggregation
from jopd.train.state import TrainState
from jopd.train.update_guard import judge, keep_if


class Batch(NamedTuple):
  """Responses to learn from, and the prompts that each model reads."""

  prompt: jax.Array  # [B, P] int32, the student's
  prompt_length: jax.Array  # [B] int32
  teacher_prompts: dict  # role -> ([B, P'] int32, [B] int32)
  response: jax.Array  # [B, T] int32
  mask: jax.Array  # [B, T] bool, the tokens to learn from
  sampler_logp: jax.Array  # [B, T]; zeros where nobody sampled
  # [B, T] under the student as it was sampled from, without temperature or
  # filter; None where another wrote the response.
  rollout_logp: jax.Array | None
  # [B] what is known of each response; None where no term asks.
  row: losses.Row | None = None


def make_teach(
  teachers: Mapping[str, Model],
  *,
  micro_batches: int = 1,
  together: int = 1,
  compute_dtype=jnp.float32,
):
  """A function that runs every teacher over a batch.

  Args:
    teachers: role -> model.
    micro_batches: the batch is scored in this many parts, one after the other.
    together: consecutive rows that stay in one part.
    compute_dtype: the parameters are cast to it; matrices in eight bits are
      widened to it layer by layer.

  Returns:
    `teach(teacher_params, batch) -> {role: [M, B / M, T, D]}` hidden states,
    micro-batches leading, as `make_learn` wants them.
  """

  def teach(teacher_params, batch: Batch):
    teacher_params = cast(teacher_params, compute_dtype)

    def score_part(part: Batch):
      return {
        name: score(
          model,
          teacher_params[name],
          *part.teacher_prompts[name],
          part.response,
        )
        for name, model in teachers.items()
      }

    return lax.map(score_part, split(batch, micro_batches, together))

  return teach


def make_gradients(
  student: Model,
  teachers: Mapping[str, Model],
  make_terms: Callable[..., Mapping[str, losses.Term]],
  *,
  reduction: Aggregation,
  micro_batches: int = 1,
  together: int = 1,
  stats_rows: Callable | None = None,
  temperature: float = 1.0,
  compute_dtype=jnp.float32,
  chunk_tokens: int = 256,
  vocab_size: int | None = None,
  gather: Callable[[jax.Array], jax.Array] = lambda head: head,
  attach: Callable | None = None,
):
  """The first half of an update: forward, loss, backward over micro-batches.

  Args:
    student: the model that learns.
    teachers: role -> model; of these, only the heads are used.
    make_terms: scalars -> the loss as named terms.
    reduction: how tokens become one number; its denominators, one of each
      term's rows, are taken over the whole batch before it is split, so
      micro-batches add up exactly.
    micro_batches: parts whose gradients are summed.
    together: consecutive rows that stay in one part.
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
    `gradients(state, teacher_params, teacher_hidden, batch, base=None,
    scalars={}) -> (gradients, loss, metrics)`. Metrics are name -> (sum, count).
  """
  # With several teachers the metrics compare with the one called 'teacher'.
  role = 'teacher' if 'teacher' in teachers else min(teachers, default='')
  stats_target = partial(losses.teacher, role=role)

  def gradients(
    state: TrainState,
    teacher_params,
    teacher_hidden,
    batch: Batch,
    base=None,
    scalars: Mapping | None = None,
  ):
    terms = make_terms(scalars or {})
    all_params = cast(teacher_params | state.followers, compute_dtype)
    heads = {
      name: gather(model.head(all_params[name]))
      for name, model in teachers.items()
    }
    masks = losses.term_masks(terms, batch.row, batch.mask)
    count = {name: reduction.count(mask) for name, mask in masks.items()}

    def loss_of(params, part: Batch, hidden):
      if attach:
        params = attach(cast(base, compute_dtype), params)
      else:
        params = cast(params, compute_dtype)
      return losses.distill_loss_chunked(
        score(student, params, part.prompt, part.prompt_length, part.response),
        gather(student.head(params)),
        {name: (hidden[name], heads[name]) for name in teachers},
        part.response,
        part.sampler_logp,
        terms,
        mask=part.mask,
        reduce=reduction.reduce,
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

    def of_part(part_and_hidden):
      (loss, metrics), grads = jax.value_and_grad(loss_of, has_aux=True)(
        state.params, *part_and_hidden
      )
      return grads, loss, metrics

    return _sum_over_leading(
      of_part, (split(batch, micro_batches, together), teacher_hidden)
    )

  return gradients


def make_learn(
  student: Model,
  teachers: Mapping[str, Model],
  make_terms: Callable[..., Mapping[str, losses.Term]],
  tx: optax.GradientTransformation,
  *,
  reduction: Aggregation,
  moving: Mapping[str, Callable] | None = None,
  spike: float = 0.0,
  **options,
):
  """The update: gradients, whether they will do, optimizer, followers.

  Args:
    student, teachers, make_terms, reduction: of `make_gradients`.
    tx: optimizer, clipping included.
    moving: role -> how that teacher follows the student, a function of
      `followers.py`. Its parameters are in the state.
    spike: of `guard.judge`.
    options: of `make_gradients`.

  Returns:
    `learn(state, teacher_params, teacher_hidden, batch, base=None, scalars={}) ->
    (state, metrics)`. Teacher parameters and base are arguments: frozen, never
    donated. Scalars are those that terms read, by name.
    Metrics are name -> (sum, count). A batch without a token to learn from
    leaves the parameters as they are. An update whose loss or gradient is not
    finite, or jumps, leaves all of the state as it is but for the step and the
    guard; the metric `skipped` is 1 then.
  """
  gradients = make_gradients(
    student, teachers, make_terms, reduction=reduction, **options
  )

  def learn(
    state: TrainState,
    teacher_params,
    teacher_hidden,
    batch: Batch,
    base=None,
    scalars: Mapping | None = None,
  ):
    grads, loss, metrics = gradients(
      state, teacher_params, teacher_hidden, batch, base, scalars
    )
    norm = optax.tree.norm(grads)
    made, guard = judge(state.guard, loss, norm, spike=spike)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    # Momentum would go on without evidence, and so would weight decay.
    tokens = [n for name, (_, n) in metrics.items() if name[:5] == 'loss/']
    some = jnp.sum(jnp.stack(tokens)) > 0
    updates = jax.tree.map(lambda u: jnp.where(some, u, 0), updates)
    params = optax.apply_updates(state.params, updates)
    step = state.step + 1
    followers = {
      role: jax.tree.map(
        lambda own, new, follow=follow: follow(own, new, step),
        state.followers[role],
        params,
      )
      for role, follow in (moving or {}).items()
    }
    changed = state._replace(
      step=step,
      params=params,
      opt_state=opt_state,
      followers=followers,
      guard=guard,
    )
    as_it_was = state._replace(step=step, guard=guard)
    one = jnp.float32(1)
    metrics |= {'loss': (loss, one), 'grad_norm': (norm, one)}
    metrics |= {'skipped': (jnp.float32(~made), one)}
    return keep_if(made, changed, as_it_was), metrics

  return learn


def cast(params, dtype):
  """The parameters in a dtype; eight bits stay so, beside their scales."""
  floating = lambda p: jnp.issubdtype(p.dtype, jnp.floating)
  one = lambda p: p.astype(dtype) if floating(p) else p
  return jax.tree.map(one, params)


def split(batch: Batch, parts: int, together: int = 1) -> Batch:
  """[B, ...] -> [parts, B / parts, ...], every device keeping its own rows."""

  def deal(x):
    hands = x.reshape(-1, parts, together, *x.shape[1:]).swapaxes(0, 1)
    return hands.reshape(parts, -1, *x.shape[1:])

  return jax.tree.map(deal, batch)


def _sum_over_leading(function, xs):
  """sum_i function(xs[i]), holding one summand at a time."""
  first = jax.tree.map(lambda x: x[0], xs)
  zero = jax.tree.map(
    lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(function, first)
  )
  add = lambda total, x: (jax.tree.map(jnp.add, total, function(x)), None)
  return lax.scan(add, zero, xs)[0]
