"""What an objective teaches, found by enumerating a small vocabulary.

On the student's own tokens, descent follows the expected gradient in the long
run, and with few tokens that can be computed: the sum over v of p_v times the
gradient where v was sampled. Two of its values tell a loss from a slip: it must
not vanish while student and teachers differ, and must vanish when the student
is its target. An objective that reads rewards may move there, but only to where
more is earned: every second token of the vocabulary gets a reward.

Not for imitation, whose tokens somebody else wrote.
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
from jopd.losses.objectives import Objective, TokenBatch, policy_gradient
from jopd.losses.surrogates import reinforce
from jopd.losses.targets import teacher
from jopd.losses.terms import Term, distill_loss
from jopd.losses.token_stats import Row, group_reward_stats

VOCAB = 16
DRAWS = 8  # of the distributions, so that no accident decides
NEAR = 1e-3  # nats between a student at rest and its target
NOTHING = 1e-5  # sound objectives teach 0.01 and more, rounding is 1e-7
MOVED = 1e-2  # as a share of what the objective teaches elsewhere

_TEACHES_NOTHING = {
  'divergence': (
    'its gradient is zero whatever the teacher says, as where one category'
    " alone is renormalised (raise k, or take tail='bucket') and where the"
    ' target is the student itself'
  ),
  'kl_estimate': (
    'the expected gradient of its penalty is zero, as that of the log-ratio,'
    ' which does not contain the teacher; use k2, or policy_gradient with'
    ' log_ratio'
  ),
  'policy_gradient': (
    'its advantage is the same for every token at its place, as a KL is, and so'
    ' its expected gradient is zero; match that divergence instead, or use'
    ' log_ratio'
  ),
}
_MOVES = {
  'divergence': (
    'a sum over part of the vocabulary pushes mass out of its support, or into'
    " it; use stop_gradient_reverse_kl or tail='bucket'"
  ),
  'kl_estimate': "its penalty's derivative is not zero there; use k2",
  'policy_gradient': 'its advantage favours some tokens there; use log_ratio',
}
_ALONE = (
  'with group_size 1 a response is only compared with itself: raise group_size,'
  " or take the advantage 'reward'"
)


def expected_gradients(
  objective: Objective,
  *,
  target: Callable = teacher,
  roles: Collection[str] = ('teacher',),
  vocab_size: int = VOCAB,
  group_size: int | None = None,
) -> tuple[Float[Array, 'S V'], Float[Array, 'S V']]:
  """What an objective teaches: sum_v p_v grad objective(v), to the logits.

  Args:
    objective: TokenBatch -> [*B] losses.
    target: what the objective pulls to, dict of [*B, V] -> [*B, V].
    roles: the teachers, by name; each has a distribution of its own.
    vocab_size: V, static; the cost grows with its square, and with groups with
      its cube.
    group_size: responses per prompt, of which two at most are enumerated; None
      where nobody grades them. Every second token earns 1, the others 0.

  Returns:
    Two [S, V] arrays over S draws of the distributions, nats per token: where
    the student and all teachers differ, and where the student is its target.

  Gradients: these are gradients.
  Numerics: a student at its target is 1e-3 beside it, and the mean is taken
    with its mirror image. What is left is 0 also where an objective has a kink
    at its rest, as total variation, or divides by the spread of its advantages.

  Example: k2 descends the reverse KL, and rests where that is 0.
    >>> from jopd.losses import k2, kl_estimate
    >>> apart, at_rest = expected_gradients(kl_estimate(k2))
    >>> float(abs(apart).max()) > 0.1, float(abs(at_rest).max()) < 1e-5
    (True, True)
  """
  gradient = jax.vmap(
    jax.grad(functools.partial(_expected_loss, objective, group_size))
  )

  # It runs once, so that most of the time goes into compiling.
  quick = {'xla_backend_optimization_level': 0}

  @functools.partial(jax.jit, compiler_options=quick)
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
  """Refuses an objective that teaches nothing, or the wrong thing.

  Nothing: its expected gradient over the student's own tokens is zero. Wrong:
  it moves a student that equals its target, or where it reads rewards, does not
  move it towards them. All are enumerated, not looked up by name, so they hold
  for functions of your own.

  Args:
    objective: TokenBatch -> [*B] losses.
    kind: 'divergence', 'kl_estimate' or 'policy_gradient'; what to say depends on it.
    target: what the objective pulls to, dict of [*B, V] -> [*B, V].
    roles: the teachers, by name. Without any there is nothing to equal, and the
      objective may move.
    vocab_size: of the enumeration. For a support of k it must exceed k, unless
      the k are the whole vocabulary in earnest too.
    group_size: responses per prompt, for an objective that reads their rewards;
      None for others.
    demonstration: True lets it move, for those who want to show it.

  Raises: ValueError with the reason and the cure.

  Example: the bare log-ratio, differentiated as it stands.
    >>> from jopd.losses import kl_estimate
    >>> k1 = lambda student_logp, target_logp: student_logp - target_logp
    >>> check_objective(
    ...   kl_estimate(k1), kind='kl_estimate'
    ... )  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: it teaches nothing: the expected gradient of its penalty is ...
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
  if jnp.max(apart) < NOTHING:
    why = _ALONE if group_size == 1 else _TEACHES_NOTHING[kind]
    raise ValueError(f'it teaches nothing: {why}')
  if demonstration:
    return
  if group_size:
    _check_ascent(
      gradients[1], find(policy_gradient(reinforce, advantage=reward))
    )
    return
  # The median, for next to a kink the rounding of one draw may decide.
  moved = jnp.median(at_rest) > MOVED * jnp.max(apart)
  if moved and roles:
    raise ValueError(
      f'it moves a student that equals its target: {_MOVES[kind]}, or set'
      ' demonstration=True to run it all the same'
    )


def check_groups(
  term: Term,
  groups: Collection[Collection[int]],
  *,
  roles: Collection[str] = ('teacher',),
  vocab_size: int = VOCAB,
) -> None:
  """Refuses a term that compares responses and finds none to compare.

  Args:
    term: that looks at the responses to a prompt.
    groups: the sources of the responses to one prompt, as they may be.
    roles: the teachers, by name.
    vocab_size: of the enumeration.

  Raises: ValueError when its gradient vanishes on all groups.
  """
  rng = random.Random(0)

  def taught(sources):
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
        # Wherever its rows are, this is about the others of their group.
        {'term': term._replace(coef=1.0)},
        mask=jnp.ones((count, 2), bool),
        count=1,
        stats_target=lambda logps: next(iter(logps.values())),
      )

    return jnp.max(jnp.abs(jax.grad(loss)(batch.student_logp)))

  if all(taught(sources) < NOTHING for sources in groups):
    raise ValueError(
      'it compares the responses to a prompt, and finds none to compare: name'
      ' more of them in source and in on, or raise group_size'
    )


def _check_ascent(at_rest, of_reward):
  """Refuses gradients of [S, V] at rest that do not go with the reward's."""
  size = lambda x: jnp.linalg.norm(x, axis=1)
  along = jnp.sum(at_rest * of_reward[1], axis=1)
  if not jnp.all(along > MOVED * size(at_rest) * size(of_reward[1])):
    raise ValueError(
      'it reads rewards, and does not raise them: a student that equals its'
      ' target should go to where the expected reward rises; use'
      ' group_advantage, or set demonstration=True to run it all the same'
    )


def _at_target(target, student, teachers):
  """Log-probs of a student that equals its target; itself without a teacher."""
  if not teachers:
    return student
  # The target may lean on the student, so to be it is to come to rest. Half
  # steps do so also where the target recedes from the student.
  step = lambda _, own: (own + target({'student': own} | teachers)) / 2
  return jax.lax.fori_loop(0, 200, step, student)


def _expected_loss(objective, group_size, student, teachers):
  """The first token's loss, over all that the student might sample there.

  From [1 + V, V] logits, of a first token and of a second one after each first:
  a row has two tokens, and there is a row for each first one, so that an advantage
  may compare tokens of a row or of the batch, and look at what a token leads
  to. In a group there is a row for each pair of them, of this response and of
  another.
  """
  vocab = student.shape[-1]
  members = 1 if group_size is None else min(group_size, 2)
  axes = jnp.meshgrid(*[jnp.arange(vocab)] * members, indexing='ij')
  group = jnp.stack(axes, axis=-1).reshape(-1, members)
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
