"""Checks of the expected gradient of an objective, by enumeration.

Over the student's own tokens, descent follows the expected gradient, and on a
small vocabulary that can be computed: the sum over v of p_v times the gradient
where v was sampled. It must not vanish while student and teachers differ, and
must vanish where the student is its target. An objective that reads rewards may
move the student there, but only to where the reward is larger: every second
token of the vocabulary has a reward.

Not for imitation of tokens that the student did not sample.
"""

from collections.abc import Callable, Collection
import functools
import math
import random

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jopd.losses.advantages import reward
from jopd.losses.distributions import log_probs, token_logp
from jopd.losses.objectives import Objective, policy_gradient
from jopd.losses.surrogates import reinforce
from jopd.losses.targets import teacher
from jopd.losses.terms import Term, distill_loss
from jopd.losses.token_stats import Row, TokenBatch, group_reward_stats

VOCAB = 16
DRAWS = 8  # of the distributions, so that no accident decides
NEAR = 1e-3  # nats between a student at rest and its target
ZERO = 1e-5  # gradients of sound objectives are 0.01 and more, rounding is 1e-7
MOVED = 1e-2  # as a share of the gradient elsewhere
# Each program runs once, so most of the time goes into compiling.
_QUICK = {'xla_backend_optimization_level': 0}

_NO_GRADIENT = {
  'divergence': (
    'its gradient is zero whatever the teacher is, as with one category'
    " renormalised (raise k, or set tail='bucket') and with the student as its"
    ' own target'
  ),
  'kl_estimate': (
    'the expected gradient of its estimator is zero, as that of the log-ratio,'
    ' which does not contain the teacher; use k2, or policy_gradient with'
    ' log_ratio'
  ),
  'policy_gradient': (
    'its advantage is the same for every token of a place, as a KL is; use'
    ' that divergence as objective, or the advantage log_ratio'
  ),
}
_MOVES = {
  'divergence': (
    'a sum over part of the vocabulary pushes mass out of its support or into'
    " it; use stop_gradient_reverse_kl or tail='bucket'"
  ),
  'kl_estimate': "its estimator's derivative is not zero there; use k2",
  'policy_gradient': 'its advantage prefers some tokens there; use log_ratio',
}
_ONE_RESPONSE = (
  'with group_size 1 a response is compared with itself: raise group_size, or'
  " use the advantage 'reward'"
)


def expected_gradients(
  objective: Objective,
  *,
  target: Callable = teacher,
  roles: Collection[str] = ('teacher',),
  vocab_size: int = VOCAB,
  group_size: int | None = None,
) -> tuple[Float[Array, 'S V'], Float[Array, 'S V']]:
  """The expected gradient, sum_v p_v grad objective(v), to the logits.

  Args:
    objective: TokenBatch -> [*B] losses.
    target: that of the objective, dict of [*B, V] -> [*B, V].
    roles: the teachers, by name; each has a distribution of its own.
    vocab_size: V, static; the cost grows with its square, and with groups with
      its cube.
    group_size: responses per prompt, of which two at most are enumerated; None
      without rewards. Every second token has reward 1, the others 0.

  Returns:
    Two [S, V] arrays over S draws of the distributions, nats per token: where
    the student and all teachers differ, and where the student is its target.

  Gradients: these are gradients.
  Numerics: the second is the mean of two students 1e-3 on either side of the
    target, so that it is 0 also for objectives with a kink there, such as total
    variation, and for those that divide by the spread of their advantages.

  Example: k2 descends the reverse KL, and rests where that is 0.
    >>> from jopd.losses import k2, kl_estimate
    >>> apart, at_rest = expected_gradients(kl_estimate(k2))
    >>> float(abs(apart).max()) > 0.1, float(abs(at_rest).max()) < 1e-5
    (True, True)
  """
  gradient = jax.vmap(
    jax.grad(functools.partial(_expected_loss, objective, group_size))
  )

  @functools.partial(jax.jit, compiler_options=_QUICK)
  def of_draws(student, noise, offset):
    # Near the student, or their likeliest tokens would hardly ever agree.
    teachers = {role: log_probs(student + x) for role, x in noise.items()}
    rest = _at_target(target, log_probs(student), teachers)
    students = jnp.concatenate([student, rest + offset, rest - offset])
    teachers = {role: jnp.concatenate([x] * 3) for role, x in teachers.items()}
    gradients = gradient(students, teachers)[:, 0]
    apart, above, below = jnp.split(gradients, 3)
    return apart, (above + below) / 2

  rng = random.Random(0)  # jax.random would be one more program to compile
  # Of a first token, and of a second one after each of them.
  shape = (DRAWS, 1 + vocab_size, vocab_size)
  normal = functools.partial(_normal, rng, shape)
  noise = {role: normal() for role in roles}
  return of_draws(1.5 * normal(), noise, NEAR * normal())


def check_objective(
  objective: Objective,
  *,
  kind: str,
  target: Callable = teacher,
  roles: Collection[str] = ('teacher',),
  vocab_size: int = VOCAB,
  group_size: int | None = None,
  demonstration: bool = False,
) -> None:
  """Refuses an objective without a gradient, or with a wrong one.

  Without: its expected gradient over the student's own tokens is zero. Wrong:
  it moves a student that equals its target, or, if it reads rewards, does not
  move it to larger ones.

  Args:
    objective: TokenBatch -> [*B] losses.
    kind: 'divergence', 'kl_estimate' or 'policy_gradient'; for the message.
    target: that of the objective, dict of [*B, V] -> [*B, V].
    roles: the teachers, by name. Without any there is no target to rest at.
    vocab_size: of the enumeration. For a support of k it must exceed k, unless
      the k are the whole vocabulary in the run too.
    group_size: responses per prompt, for an objective that reads their rewards;
      None for others.
    demonstration: True allows it to move a student at its target.

  Raises: ValueError with the reason and what to change.

  Example: the bare log-ratio, differentiated as it stands.
    >>> from jopd.losses import kl_estimate
    >>> k1 = lambda student_logp, target_logp: student_logp - target_logp
    >>> check_objective(
    ...   kl_estimate(k1), kind='kl_estimate'
    ... )  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: it has no gradient: the expected gradient of its estimator ...
  """
  find = functools.partial(
    expected_gradients,
    target=target,
    roles=roles,
    vocab_size=vocab_size,
    group_size=group_size,
  )
  gradients = find(objective)
  apart, at_rest = (jnp.max(jnp.abs(x), axis=1) for x in gradients)
  if jnp.max(apart) < ZERO:
    why = _ONE_RESPONSE if group_size == 1 else _NO_GRADIENT[kind]
    raise ValueError(f'it has no gradient: {why}')
  if demonstration:
    return
  # The median, for next to a kink the rounding of one draw may decide.
  moved = jnp.median(at_rest) > MOVED * jnp.max(apart)
  if moved and group_size:
    _check_ascent(
      gradients[1], find(policy_gradient(reinforce, advantage=reward))
    )
  elif moved and roles:
    raise ValueError(
      f'it moves a student that equals its target: {_MOVES[kind]}, or set'
      ' demonstration=True to run it anyway'
    )


def check_groups(
  term: Term,
  groups: Collection[Collection[int]],
  *,
  roles: Collection[str] = ('teacher',),
  vocab_size: int = VOCAB,
) -> None:
  """Refuses a term that compares the responses to a prompt and has no pairs.

  Args:
    term: that reads groups.
    groups: possible response sources of one group, by index.
    roles: the teachers, by name.
    vocab_size: of the enumeration.

  Raises: ValueError when its gradient is zero on all groups.
  """
  rng = random.Random(0)

  def largest_gradient(sources):
    # Of two prompts, so that every row is right once.
    source = jnp.array([*sources] * 2, jnp.int32)
    count = len(source)
    group = jnp.arange(count) // len(sources)
    reward = ((jnp.arange(count) % len(sources) + group) % 2).astype(float)
    mean, std = jnp.full(count, 0.5), jnp.full(count, 0.5)
    row = Row(reward, mean, std, group, source, jnp.zeros_like(source))
    each = lambda x: jnp.broadcast_to(x[:, None], (count, 2))
    normal = functools.partial(_normal, rng, (count, 2, vocab_size))
    tokens = [rng.randrange(vocab_size) for _ in range(2 * count)]
    batch = TokenBatch(
      student_logp=normal(),
      logps={role: log_probs(normal()) for role in roles},
      token=jnp.array(tokens).reshape(count, 2),
      sampler_logp=jnp.full((count, 2), -1.0),
      row=jax.tree.map(each, row),
    )

    def loss(logits):
      return distill_loss(
        batch._replace(student_logp=log_probs(logits)),
        {'term': term._replace(coef=1.0)},
        mask=jnp.ones((count, 2), bool),
        count=1,
        stats_target=lambda logps: next(iter(logps.values())),
      )

    gradient = jax.jit(jax.grad(loss), compiler_options=_QUICK)
    return jnp.max(jnp.abs(gradient(batch.student_logp)))

  if all(largest_gradient(sources) < ZERO for sources in groups):
    raise ValueError(
      'it compares the responses to a prompt and there are none to compare:'
      ' raise group_size, or name more sources in response_source and rows'
    )


def _check_ascent(at_rest, of_reward):
  """Refuses gradients of [S, V] at rest that do not raise the reward."""
  size = lambda x: jnp.linalg.norm(x, axis=1)
  along = jnp.sum(at_rest * of_reward[1], axis=1)
  if not jnp.all(along > MOVED * size(at_rest) * size(of_reward[1])):
    raise ValueError(
      'it reads rewards and does not raise them: at a student that equals its'
      ' target, descent must raise the expected reward; use group_advantage, or'
      ' set demonstration=True to run it anyway'
    )


def _at_target(target, student, teachers):
  """Log-probs of a student that equals its target; itself without a teacher."""
  if not teachers:
    return student
  # The target may depend on the student: a fixed point, by half steps, which
  # converge also where the target recedes from the student.
  step = lambda _, p: (p + target({'student': p} | teachers)) / 2
  return jax.lax.fori_loop(0, 200, step, student)


def _expected_loss(objective, group_size, student, teachers):
  """The expected loss of the first token over all that may be sampled there.

  From [1 + V, V] logits, of a first token and of a second one after each first.
  A row has two tokens, and there is a row for each first one, so that an
  advantage may compare tokens of a row or of the batch, and read later tokens.
  With groups there is a row for each pair of responses.
  """
  vocab = student.shape[-1]
  responses = 1 if group_size is None else min(group_size, 2)
  axes = jnp.meshgrid(*[jnp.arange(vocab)] * responses, indexing='ij')
  group = jnp.stack(axes, axis=-1).reshape(-1, responses)
  first = group[:, 0]

  def rows(logits):
    logp = log_probs(logits)
    both = jnp.broadcast_to(logp[:1], (len(first), vocab)), logp[1:][first]
    return jnp.stack(both, axis=1)

  student_logp = rows(student)
  token = jnp.stack([first, jnp.zeros_like(first)], axis=1)
  row = Row(group=jnp.zeros_like(token))  # All of them answer one prompt.
  if group_size:
    both = group_reward_stats((group % 2).astype(jnp.float32))
    row = jax.tree.map(
      lambda x: jnp.stack([x.reshape(group.shape)[:, 0]] * 2, axis=1), both
    )
  batch = TokenBatch(
    student_logp=student_logp,
    logps={role: rows(logits) for role, logits in teachers.items()},
    token=token,
    sampler_logp=jax.lax.stop_gradient(token_logp(student_logp, token)),
    row=row,
  )
  each = jnp.exp(student_logp[0, 0])[group]
  chance = jax.lax.stop_gradient(jnp.prod(each, axis=1))
  return jnp.sum(chance * objective(batch)[:, 0])


def _normal(rng: random.Random, shape: tuple[int, ...]):
  numbers = [rng.gauss(0.0, 1.0) for _ in range(math.prod(shape))]
  return jnp.array(numbers, jnp.float32).reshape(shape)
