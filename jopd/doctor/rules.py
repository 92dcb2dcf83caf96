"""From the observations of a stage to findings."""

from collections.abc import Iterator, Mapping
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jopd.doctor.findings import (
  CHECKS,
  COLD,
  READABLE,
  UNREADABLE,
  WARM_UP,
  Finding,
  judge,
)
from jopd.doctor.stage import (
  Observations,
  TeacherObservations,
  difference,
  remaining_headroom,
)
from jopd.losses.token_stats import TOP
from jopd.run.loss import OFF_POLICY, TermSpec

_NEGLIGIBLE = 0.01  # nats per token
_MIN_HEADROOM = 0.1  # below it the remaining fraction means nothing


def support_of(
  terms: Mapping[str, TermSpec], vocab_size: int
) -> tuple[str, int] | None:
  """The term with the smallest support, and its size; None if all are full.

  Args:
    terms: of a stage, of `run.loss.read_terms`.
    vocab_size: V.
  """
  sizes = []
  for name, term in terms.items():
    support = term.objective.settings.get('support')
    if support is None:
      continue
    size = support.settings.get('k')
    if size is None:
      logp = jax.ShapeDtypeStruct((vocab_size,), jnp.float32)
      size = jax.eval_shape(support.bind(), logp, logp)[0].shape[-1]
    if size < vocab_size:
      sizes.append((size, name))
  return min(sizes)[::-1] if sizes else None


def judge_stage(
  observed: Observations,
  *,
  stage,
  terms: Mapping[str, TermSpec],
  vocab_size: int,
  response_tokens: int,
) -> list[Finding]:
  """The findings of a stage.

  Args:
    observed: what `Examination.observe` returned.
    stage: a `train.stage.Stage`.
    terms: of its loss, of `run.loss.read_terms`.
    vocab_size: of the tokenizer.
    response_tokens: the length limit of a response.
  """
  names = dict(
    stage=stage.name,
    student=stage.student.model,
    vocab_size=vocab_size,
    longer=2 * response_tokens,
    shorter=max(1, response_tokens // 4),
  )
  cold = dict(mechanism=COLD, fix=WARM_UP) if _is_cold(observed) else {}
  findings = []
  for role, teacher in observed.teachers.items():
    model = stage.teachers.models[role]
    itself = model == stage.student.model and teacher.privilege is not None
    judged = _Judge(
      observed,
      teacher,
      cold,
      dict(mechanism=UNREADABLE, fix=READABLE) if itself else {},
      f'{role}: ' if len(observed.teachers) > 1 else '',
      names | dict(teacher=model, role=role),
    )
    if not findings:
      findings += _judge_student(judged._replace(prefix=''))
    findings += _judge_teacher(judged)
    findings += _judge_tokens(judged)
    findings += _judge_support(judged, terms)
    findings += _judge_privilege(judged)
  return [*findings, *_judge_loss(judged._replace(prefix=''), terms)]


class _Judge(NamedTuple):
  """What the findings of one teacher have in common."""

  observed: Observations
  teacher: TeacherObservations
  cold: dict  # mechanism and fix, if the student is cold
  unreadable: dict  # the same for a student that is its own teacher
  prefix: str  # of the meaning, if there are several teachers
  names: dict

  def __call__(self, check: str, number, meaning: str, **options) -> Finding:
    return judge(check, number, self.prefix + meaning, **options, **self.names)

  def mean(self, values: np.ndarray) -> float:
    """Over the tokens that count."""
    return float(values[self.observed.mask].mean(dtype=np.float64))


def _is_cold(observed: Observations) -> bool:
  """Whether the student does not even attempt the task."""
  if observed.greedy.accuracy >= CHECKS['student'].warn:
    return False
  distance = min(
    float(teacher.readings.reverse_kl[observed.mask].mean())
    for teacher in observed.teachers.values()
  )
  truncated = np.mean(observed.samples[0].truncated)
  return bool(
    truncated > CHECKS['truncation'].warn or distance > CHECKS['distance'].warn
  )


def _judge_student(judged: _Judge) -> Iterator[Finding]:
  observed, cold = judged.observed, judged.cold
  greedy, samples = observed.greedy, observed.samples
  if greedy.num_graded or cold:
    status = None
    if cold or greedy.accuracy < CHECKS['student'].warn:
      status = 'refuse' if cold else 'warn'
    text = f'greedy accuracy of the student, {greedy.num_graded} prompts'
    yield judged('student', greedy.accuracy, text, status=status)
  count = len(samples[0].response_length)
  length = np.mean(samples[0].response_length)
  yield judged(
    'truncation',
    np.mean(samples[0].truncated),
    f'of {count} sampled responses hit the limit; length {length:.1f}',
    **cold,
  )
  rewards = np.stack([responses.reward for responses in samples])
  all_rewards = [rewards, greedy.reward, judged.teacher.alone.reward]
  values = {float(r) for x in all_rewards for r in x.ravel() if not np.isnan(r)}
  if values:
    text = 'different values, of student and teacher'
    yield judged('rewards', len(values), text)
  graded = rewards[:, ~np.isnan(rewards[0])]
  if len(samples) > 1 and graded.size:
    yield judged(
      'equal groups',
      np.mean(np.all(graded == graded[0], axis=0)),
      f'of {graded.shape[1]} prompts: one reward for {len(samples)} samples',
    )
  padding = judged.mean(judged.teacher.readings.padding)
  yield judged('padding', padding, "student's mass on ids beyond the tokenizer")
  gap = observed.sampler_gap
  yield judged(
    'sampler',
    abs(gap.mean()),
    f'nats per token to the learner, at most {np.abs(gap).max():.1e}',
  )


def _judge_teacher(judged: _Judge) -> Iterator[Finding]:
  observed, teacher = judged.observed, judged.teacher
  alone = teacher.alone
  gain, low, high = difference(alone, observed.greedy)
  if not math.isnan(gain):
    status = 'ok' if low > 0 else 'warn'
    # A privilege may help in what accuracy does not measure.
    if high < 0 and teacher.privilege is None:
      status = 'refuse'
    yield judged(
      'headroom',
      gain,
      f'teacher {alone.accuracy:.3f} minus student; 95 % {low:.2f} to'
      f' {high:.2f}',
      status=status,
      **judged.unreadable,
    )
  yield judged(
    'teacher truncation',
    np.mean(alone.truncated),
    'of greedy responses hit the limit; length'
    f' {np.mean(alone.response_length):.1f}',
    **judged.unreadable,
  )
  base = observed.samples[0].accuracy
  if math.isnan(base) or alone.accuracy - base < _MIN_HEADROOM:
    return
  left = {
    fraction: remaining_headroom(alone.accuracy, completed.accuracy, base)
    for fraction, completed in teacher.after.items()
  }
  others = (f'{x:.2f} at {f:.0%}' for f, x in left.items() if f != 0.5)
  text = f'of headroom left half-way; {", ".join(others)}'
  yield judged('prefixes', left[0.5], text, **judged.cold)


def _judge_tokens(judged: _Judge) -> Iterator[Finding]:
  readings, mean = judged.teacher.readings, judged.mean
  cause = judged.cold or judged.unreadable
  vocab_size = judged.names['vocab_size']
  yield judged(
    'repeatability',
    judged.teacher.repeats,
    'largest difference, the same text scored twice',
  )
  yield judged(
    'distance',
    mean(readings.reverse_kl),
    f'nats per token to the teacher, {judged.observed.mask.sum()} tokens',
    **cause,
  )
  text = 'of tokens: both have the same most likely id'
  yield judged('agreement', mean(readings.agreement), text, **cause)
  text = f"of the {min(TOP, vocab_size)} most likely ids are also the teacher's"
  yield judged('overlap', mean(readings.overlap), text, **cause)
  text = "student's mass on ids that are likely to both"
  yield judged('overlap mass', mean(readings.overlap_mass), text, **cause)
  student, teacher = (
    mean(readings.student_entropy),
    mean(readings.target_entropy),
  )
  yield judged(
    'entropy',
    student / math.log(vocab_size),
    f'of log V; student {student:.2f} nats, teacher {teacher:.2f}',
    **judged.cold,
  )


def _judge_support(judged: _Judge, terms) -> Iterator[Finding]:
  readings = judged.teacher.on_support
  if readings is None:
    return
  term, k = support_of(terms, judged.names['vocab_size'])
  masses = judged.mean(readings.student_mass), judged.mean(readings.target_mass)
  yield judged(
    'support mass',
    min(masses),
    f'on {k} ids: student {masses[0]:.3f}, teacher {masses[1]:.3f}; overlap'
    f' {judged.mean(readings.overlap):.2f}',
    term=term,
    more=4 * k,
    **judged.cold,
  )


def _judge_privilege(judged: _Judge) -> Iterator[Finding]:
  if judged.teacher.privilege is None:
    return
  information, distance = map(judged.mean, judged.teacher.privilege)
  if math.isnan(information):
    text = 'not measured: the context of no other example fits'
    yield judged('privilege', information, text, status='warn')
    return
  yield judged(
    'privilege',
    information / distance if distance else 0.0,
    f'of the loss depends on the example of the context: {information:.3f} of'
    f' {distance:.3f} nats',
    status='ok' if information < _NEGLIGIBLE else None,
  )


def _judge_loss(judged: _Judge, terms) -> Iterator[Finding]:
  for term, gradient in judged.observed.gradients.items():
    if terms[term].objective.function in OFF_POLICY:
      continue
    text = f'norm of the gradient of term {term}'
    yield judged('gradient', gradient.norm, text, term=term)
    if gradient.norm >= CHECKS['gradient'].warn:
      yield judged(
        'equality',
        gradient.norm_at_equality / gradient.norm,
        'of that norm where student and teacher are equal; value'
        f' {gradient.value_at_equality:.1e}',
        term=term,
      )
