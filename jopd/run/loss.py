"""From the section `loss` of a stage to the loss: read once, before `jit`."""

from collections.abc import Callable, Collection, Iterable, Mapping
import inspect
import numbers
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jopd import losses
from jopd.losses import gradient_check
from jopd.run.config import ConfigError, error_context, refuse_unknown
from jopd.run.resolve import (
  Resolved,
  Scalar,
  find,
  is_own,
  qualified_name,
  read_number,
  read_spec,
)
from jopd.run.sources import STUDENT, Sources
from jopd.train.stage import Aggregation, Loss

# Objectives of responses that the student did not write.
OFF_POLICY = (losses.negative_log_likelihood, losses.preference)
# Terms that were checked in this process: stages repeat few of them.
_CHECKED = set()
_COMMON = ('objective', 'coef', 'weight', 'rows', 'demonstration')


class TermSpec(NamedTuple):
  """A term as its settings say, names resolved.

  Attributes:
    objective: a function that makes the objective, or is it.
    is_objective: which of the two.
    weight: of a token.
    coef: of the term.
    rows: that the term learns from; None for all.
    demonstration: whether it may move a student that equals its target.
  """

  objective: Resolved
  is_objective: bool
  weight: Resolved
  coef: float | Scalar
  rows: Callable | None
  demonstration: bool

  def build(self, scalars: Mapping) -> losses.Term:
    """The term, with scalars where its settings change."""
    objective = self.objective.bind(scalars)
    if not self.is_objective:
      objective = objective()
    coef = self.coef
    if isinstance(coef, Scalar):
      coef = scalars[coef.name]
    return losses.Term(objective, self.weight.bind(scalars), coef, self.rows)

  def scalars(self) -> list[Scalar]:
    """The settings that change."""
    coef = [self.coef] if isinstance(self.coef, Scalar) else []
    return [*coef, *self.objective.scalars(), *self.weight.scalars()]

  def functions(self) -> list[Callable]:
    """All functions that it is made of."""
    return [*self.objective.functions(), *self.weight.functions()]


def make_loss(
  settings,
  *,
  vocab_size: int,
  sources: Sources,
  controlled: Mapping[str, float],
  off_policy: str = '',
  chunk_parts: int = 1,
) -> Loss:
  """The loss of a stage.

  Its terms are tried on shapes, so that what only a function itself refuses, a
  k beyond the vocabulary, does not wait for the first step. Functions of a
  user's own are tried on a small vocabulary too: a term with no gradient, or
  with one where the student equals its target, is refused. `jopd doctor` tries
  all terms.

  Args:
    settings: of the stage.
    vocab_size: V.
    sources: of the responses.
    controlled: first values of controlled settings.
    off_policy: why responses may not be the student's as it is; '' if they are.
    chunk_parts: devices that a chunk of the loss is divided over.

  Raises:
    ConfigError: a term is wrong; the message begins with its name.
  """
  roles = tuple(settings.teachers)
  specs = read_terms(settings.loss.to_dict(), sources)
  last = settings.steps * settings.num_minibatches - 1
  changing = [s for spec in specs.values() for s in spec.scalars()]

  def scalars(update: int, controlled: Mapping[str, float]) -> dict[str, float]:
    return {s.name: s.value(update, controlled) for s in changing}

  def terms(scalars: Mapping) -> dict[str, losses.Term]:
    return {name: spec.build(scalars) for name, spec in specs.items()}

  reads = losses.Reads('token', False, False)
  for name, spec in specs.items():
    with error_context(f'loss.{name}'):
      first = scalars(0, controlled)
      _check_traced(spec, first, roles, vocab_size)
      for values in (first, scalars(last, controlled)):
        _run_on_shapes(spec.build(values), roles, vocab_size)
      term = spec.build(first)
      term_reads = losses.term_reads(term)
      _check_reads(spec, term_reads, settings, sources)
      _check_old_policy(spec, first, settings.num_minibatches, off_policy)
      # The check ignores weights, and an objective of a user's own may be for
      # responses of another policy.
      own = any(map(is_own, spec.objective.functions()))
      if own and not spec.is_objective:
        check_term(spec, first, roles, sources.group_size, vocab_size)
      reads |= term_reads
  return Loss(
    terms,
    scalars,
    reads,
    make_aggregation(settings.loss_aggregation),
    settings.loss_temperature,
    settings.loss_chunk_tokens * chunk_parts,
  )


def read_terms(section, sources: Sources) -> dict[str, TermSpec]:
  """The terms of a loss by name.

  A term is dict(objective=..., coef=1.0, weight='uniform', rows=(), ...); what
  else it has are settings of the objective: `divergence` has divergence,
  support and target, `kl_estimate` estimator and target, `policy_gradient`
  surrogate, advantage, old_policy and target. With `rows`, names of sources or
  domains, it learns from their rows alone.
  """
  if not section:
    raise ConfigError('loss is empty: add a term')
  specs = {}
  for name, settings in section.items():
    with error_context(f'loss.{name}'):
      specs[name] = _read_term(name, settings, sources)
  return specs


def _read_term(name: str, settings, sources: Sources) -> TermSpec:
  if not isinstance(settings, Mapping):
    raise ConfigError(f'a term must be a section, got {settings!r}')
  if 'objective' not in settings:
    raise ConfigError("a term needs 'objective', such as 'divergence'")
  function, own = find('objective', settings['objective'])
  own |= {n: x for n, x in settings.items() if n not in _COMMON}
  is_objective = is_own(function)
  known = inspect.signature(function).parameters
  refuse_unknown(settings, {*_COMMON, *known}, f'a {function.__name__} term')
  coef = read_number(settings.get('coef', 1.0), f'{name}.coef')
  if not isinstance(coef, numbers.Real | Scalar) or (
    isinstance(coef, numbers.Real) and not abs(coef) < 1e30
  ):
    raise ConfigError(f'coef must be a number, or follow a schedule: {coef!r}')
  return TermSpec(
    read_spec(
      'objective',
      {'name': function, **own},
      place=name,
      parameters=None if is_objective else (),
    ),
    is_objective,
    read_spec(
      'weight', settings.get('weight', 'uniform'), place=f'{name}.weight'
    ),
    coef,
    sources.rows(settings.get('rows', ())),
    settings.get('demonstration', False),
  )


def needs_reward(specs: Iterable[TermSpec]) -> bool:
  """Whether a function of jopd's, or one that declares it, reads rewards.

  An undeclared function of a user's own gets rewards where there are some, and
  none are required for it.
  """
  return any(
    losses.reads_of(part.bind(_Ones())).reward
    for spec in specs
    for part in (spec.weight, *_parts(spec.objective))
    if getattr(part.function, 'reads', None) is not None
  )


class _Ones(dict):
  """Scalars that are all 1, for what does not depend on them."""

  def __missing__(self, name):
    return 1.0


def _parts(resolved: Resolved) -> list[Resolved]:
  """What the settings of an objective resolve to, and itself."""
  inner = [x for x in resolved.settings.values() if isinstance(x, Resolved)]
  return [resolved, *inner]


def check_term(
  spec: TermSpec,
  scalars: Mapping,
  roles: Collection[str],
  group_size: int,
  vocab_size: int,
) -> None:
  """Refuses a term that has no gradient, or has one where it should rest.

  Raises:
    ConfigError: with the reason and what to change.
  """
  if spec.objective.function in OFF_POLICY:
    return
  small = min(gradient_check.VOCAB, vocab_size)
  build = lambda: _small(spec, vocab_size, small).build(scalars)
  reads = losses.reads_of(build().objective)
  rewards = min(group_size, 2) if reads.reward else None
  target = spec.objective.settings.get('target')
  key = (repr(spec.objective), tuple(sorted(roles)), small, rewards)
  if key in _CHECKED:
    return
  losses.check_objective(
    build().objective,
    kind=spec.objective.function.__name__,
    target=target.bind(scalars) if target else losses.teacher,
    roles=roles,
    vocab_size=small,
    group_size=rewards,
    demonstration=spec.demonstration,
  )
  _CHECKED.add(key)


def _small(spec: TermSpec, vocab_size: int, small: int) -> TermSpec:
  """The term with whole numbers that fit a small vocabulary."""

  def shrink(value):
    if isinstance(value, Resolved):
      return Resolved(value.function, shrink(value.settings))
    if isinstance(value, Mapping):
      return {name: shrink(x) for name, x in value.items()}
    if type(value) is not int:
      return value
    # All stays all; a part stays a part that leaves something out.
    return small if value >= vocab_size else min(value, small // 2)

  return spec._replace(objective=shrink(spec.objective))


def _check_reads(
  spec: TermSpec, reads: losses.Reads, settings, sources: Sources
) -> None:
  """Refuses what a term cannot read in this stage."""
  parts = settings.gradient_accumulation_steps
  if reads.scope == 'batch' and parts > 1:
    undeclared = [
      qualified_name(f)
      for f in (spec.weight.function, *spec.objective.functions())
      if is_own(f) and getattr(f, 'reads', None) is None
    ]
    hint = (
      f'; {undeclared[0]} does not declare what it reads: if that is the token,'
      " decorate it with jopd.losses.reads('token')"
      if undeclared
      else ''
    )
    raise ConfigError(
      'it reads the whole batch, which gradient accumulation divides: set'
      f' gradient_accumulation_steps=1, got {parts}{hint}'
    )
  compares = (losses.group_advantage, losses.preference)
  if sources.group_size == 1 and any(f in compares for f in spec.functions()):
    raise ConfigError(
      'it compares the responses to a prompt, and group_size is 1: set'
      ' group_size to 2 or more'
    )
  by_source = spec.objective.settings.get('by', 'source') == 'source'
  if spec.objective.function is losses.preference and by_source:
    if not any({STUDENT} < {*group} for group in sources.groups):
      raise ConfigError(
        "it prefers other sources to 'student', and no group of response_source"
        " has both: add one, or set by='reward'"
      )


def _check_old_policy(
  spec: TermSpec, scalars: Mapping, num_minibatches: int, off_policy: str
) -> None:
  """Refuses a policy gradient that takes others' tokens for the student's."""
  if num_minibatches > 1 and not off_policy:
    off_policy = (
      f'with num_minibatches = {num_minibatches} all but the first update are'
      ' on responses of an older student'
    )
  if not off_policy or spec.objective.function is not losses.policy_gradient:
    return
  old_policy = spec.objective.settings.get('old_policy')
  if (
    old_policy is None or not losses.reads_of(old_policy.bind(scalars)).sampler
  ):
    raise ConfigError(f"{off_policy}: set old_policy='sampler'")


def _run_on_shapes(
  term: losses.Term, roles: Collection[str], vocab_size: int
) -> None:
  """Traces the loss of a term on shapes, for what its own code refuses."""
  scalar = jax.ShapeDtypeStruct((1, 1), jnp.float32)
  number = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  logp = jax.ShapeDtypeStruct((1, 1, vocab_size), jnp.float32)
  row = losses.Row(*[scalar] * 3, *[number] * 3, scalar)
  batch = losses.TokenBatch(
    logp, dict.fromkeys(roles, logp), number, scalar, scalar, row
  )

  def loss(batch):
    return losses.distill_loss(
      batch,
      {'term': term},
      mask=jnp.ones((1, 1), bool),
      count=1,
      stats_target=lambda logps: next(iter(logps.values())),
    )

  jax.eval_shape(loss, batch)


def _check_traced(
  spec: TermSpec, scalars: Mapping, roles: Collection[str], vocab_size: int
) -> None:
  """Refuses a changing number that decides a shape or a branch."""
  own = {s.name: jnp.float32(scalars[s.name]) for s in spec.scalars()}
  if not own:
    return

  def traced(values):
    _run_on_shapes(spec.build(values), roles, vocab_size)

  try:
    jax.eval_shape(traced, own)
  except TypeError as error:  # of jax, where a number has to be known
    raise ConfigError(
      f'one of {", ".join(own)} decides a shape or a branch, which cannot'
      ' change while a program runs: give it as a number'
    ) from error


def make_aggregation(spec) -> Aggregation:
  """How tokens become one number; see `losses/aggregation.py`.

  A function of a user's own divides by the number of tokens, or, with an
  attribute `counts = 'rows'`, by that of rows.
  """
  with error_context('loss_aggregation'):
    resolved = read_spec('loss_aggregation', spec)
    reduce = resolved.bind()
    jax.eval_shape(reduce, jnp.zeros((1, 1)), jnp.ones((1, 1), bool), 1)
  rows = getattr(resolved.function, 'counts', 'tokens') == 'rows'
  count = (lambda mask: jnp.sum(jnp.any(mask, axis=1))) if rows else jnp.sum
  return Aggregation(reduce, count)
