"""What a term needs, found by running it on shapes alone, or on two numbers.

Nothing is found by name, so functions of one's own are found out alike.
"""

from collections.abc import Callable, Collection

import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike as Scalar

from jopd.losses.objectives import TokenBatch
from jopd.losses.terms import Term, distill_loss
from jopd.losses.token_stats import Row, TokenStats


def run_on_shapes(
  make_term: Callable[[Scalar], Term],
  roles: Collection[str],
  vocab_size: int,
  *,
  graded: bool = True,
) -> None:
  """Runs the loss of a term without a number, for what its own code refuses.

  Args:
    make_term: step, which is traced -> Term.
    roles: names of the teachers.
    vocab_size: V.
    graded: whether there are rewards.

  Raises: whatever the term raises.
  """
  scalars = jax.ShapeDtypeStruct((1, 1), jnp.float32)
  number = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  logp = jax.ShapeDtypeStruct((1, 1, vocab_size), jnp.float32)
  batch = TokenBatch(
    logp,
    dict.fromkeys(roles, logp),
    token=jax.ShapeDtypeStruct((1, 1), jnp.int32),
    sampler_logp=scalars,
    rollout_logp=scalars,
    row=Row(*[scalars if graded else None] * 3, *[number] * 3, scalars),
  )
  # For what weights read any teacher will do: only shapes matter here.
  some_teacher = lambda logps: next(iter(logps.values()))

  def loss(batch, step):
    return distill_loss(
      batch,
      {'term': make_term(step)},
      mask=jnp.ones((1, 1), bool),
      count=1,
      stats_target=some_teacher,
    )

  jax.eval_shape(loss, batch, jax.ShapeDtypeStruct((), jnp.int32))


def reads_rewards(
  make_term: Callable[[Scalar], Term], roles: Collection[str], vocab_size: int
) -> bool:
  """Whether a sound term cannot do without rewards; arguments as above."""
  try:
    run_on_shapes(make_term, roles, vocab_size, graded=False)
  except Exception:  # a function of one's own may fail on None in any way
    return True
  return False


def reads_sampler(old_policy: Callable) -> bool:
  """Whether an old_policy moves with the sampler's log-prob.

  Args:
    old_policy: TokenStats -> [*B].

  Example:
    >>> from jopd.losses import old_policies
    >>> reads_sampler(old_policies.sampler), reads_sampler(old_policies.student)
    (True, False)
  """
  of = lambda logp: old_policy(
    TokenStats(
      student_logp=jnp.zeros(1), target_logp=jnp.zeros(1), sampler_logp=logp
    )
  )
  return bool(jnp.any(of(jnp.zeros(1)) != of(jnp.ones(1))))
