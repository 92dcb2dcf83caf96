"""From what was observed of a stage to findings."""

from collections.abc import Iterator, Mapping
import math
from typing import NamedTuple

import numpy as np

from jopd.doctor.answers import Answers, difference, kept_headroom
from jopd.doctor.findings import (
  CHECKS,
  COLD,
  READABLE,
  UNREAD,
  WARM,
  Finding,
  judge,
)
from jopd.doctor.token_statistics import Pull, Readings
from jopd.losses.token_stats import TOP
from jopd.run.resolve import OF_OTHERS

_LITTLE = 0.01  # nats per token that are not worth a word
_HEADROOM = 0.1  # less of it says nothing of what becomes of it


class OfTeacher(NamedTuple):
  """What was observed of one teacher.

  Attributes:
    alone: its greedy answers.
    after: share of the student's response -> the same from there on.
    repeats: largest difference of its hidden states when it scores twice.
    readings: [B, T] on the student's states, of the 16 likeliest ids.
    on_support: the same of as many as the loss reads, if it reads a part.
    privilege: information and distance of `states.privilege`, [B, T] each;
      None where the teacher reads what the student does.
  """

  alone: Answers
  after: Mapping[float, Answers]
  repeats: float
  readings: Readings
  on_support: Readings | None
  privilege: tuple[np.ndarray, np.ndarray] | None


class Seen(NamedTuple):
  """What was observed of a stage.

  Attributes:
    greedy: the student's greedy answers.
    samples: its sampled answers, [group] times; the first are the states.
    mask: [B, T] of these, True counts.
    sampler_gap: their log-probs when they were sampled minus those when they
      are scored, nats, of each token that counts.
    pulls: of each term of the loss.
    teachers: by role.
  """

  greedy: Answers
  samples: list[Answers]
  mask: np.ndarray
  sampler_gap: np.ndarray
  pulls: Mapping[str, Pull]
  teachers: Mapping[str, OfTeacher]


def support_of(settings) -> tuple[str, int] | None:
  """The term of a stage that reads the fewest ids, and how many; None: all.

  Args:
    settings: a stage of the config.
  """
  found = []
  for name, term in settings.loss.items():
    support = term.get('support', 'full')
    if not isinstance(support, str) and 'k' in support:
      found.append((support['k'], name))
  return min(found)[::-1] if found else None


def judge_stage(
  seen: Seen, *, stage, settings, vocab_size: int, response_tokens: int
) -> list[Finding]:
  """The findings of a stage.

  Args:
    seen: what `Examination.observe` returned.
    stage: a `train.stage.Stage`.
    settings: its section of the config.
    vocab_size: of the tokenizer.
    response_tokens: the limit of a response.
  """
  names = dict(
    stage=stage.name,
    student=stage.student.model,
    vocab_size=vocab_size,
    longer=2 * response_tokens,
    shorter=max(1, response_tokens // 4),
  )
  why = dict(mechanism=COLD, fix=WARM) if _is_cold(seen) else {}
  findings = []
  for role, teacher in seen.teachers.items():
    of = f'{role}: ' if len(seen.teachers) > 1 else ''
    own = dict(teacher=stage.teachers.models[role], role=role)
    itself = (
      own['teacher'] == stage.student.model and teacher.privilege is not None
    )
    alone = dict(mechanism=UNREAD, fix=READABLE) if itself else {}
    about = _About(seen, teacher, why, alone, of, names | own)
    if not findings:
      findings += _of_student(about._replace(of=''))
    findings += _of_teacher(about)
    findings += _of_states(about)
    findings += _of_support(about, settings)
    findings += _of_privilege(about)
  return [*findings, *_of_loss(about._replace(of=''), settings)]


class _About(NamedTuple):
  """What is judged, and what its findings are filled with."""

  seen: Seen
  teacher: OfTeacher
  why: dict  # mechanism and fix of what a cold student explains
  alone: dict  # the same of what a context explains of a student that teaches
  of: str  # which teacher, where there are several
  names: dict

  def judge(self, check: str, number, meaning: str, **options) -> Finding:
    return judge(check, number, self.of + meaning, **options, **self.names)

  def mean(self, numbers: np.ndarray) -> float:
    """Over the tokens that count."""
    return float(numbers[self.seen.mask].mean(dtype=np.float64))


def _is_cold(seen: Seen) -> bool:
  """Whether the student does not even attempt the task."""
  tried = seen.greedy.accuracy >= CHECKS['student'].warn
  distance = min(
    float(teacher.readings.reverse_kl[seen.mask].mean())
    for teacher in seen.teachers.values()
  )
  lost = np.mean(seen.samples[0].truncated) > CHECKS['truncation'].warn
  return not tried and bool(lost or distance > CHECKS['distance'].warn)


def _of_student(about: _About) -> Iterator[Finding]:
  greedy, samples = about.seen.greedy, about.seen.samples
  if greedy.graded or about.why:
    number, status = greedy.accuracy, None
    if about.why or number < CHECKS['student'].warn:
      status = 'refuse' if about.why else 'warn'
    text = f'greedy accuracy of the student, {greedy.graded} prompts'
    yield about.judge('student', number, text, status=status)
  rows = len(samples[0].response_length)
  length = np.mean(samples[0].response_length)
  yield about.judge(
    'truncation',
    np.mean(samples[0].truncated),
    f'of {rows} sampled responses hit the limit; length {length:.1f}',
    **about.why,
  )
  rewards = np.stack([answers.reward for answers in samples])
  every = [rewards, greedy.reward, about.teacher.alone.reward]
  values = {float(r) for x in every for r in x.ravel() if not math.isnan(r)}
  if values:
    text = 'different values, of student and teacher'
    yield about.judge('rewards', len(values), text)
  graded = rewards[:, ~np.isnan(rewards[0])]
  if len(samples) > 1 and graded.size:
    yield about.judge(
      'equal groups',
      np.mean(np.all(graded == graded[0], axis=0)),
      f'of {graded.shape[1]} prompts: one reward for {len(samples)} samples',
    )
  padding = about.mean(about.teacher.readings.padding)
  text = "student's mass on ids beyond the tokenizer"
  yield about.judge('padding', padding, text)
  gap = about.seen.sampler_gap
  yield about.judge(
    'sampler',
    abs(gap.mean()),
    f'nats per token to the learner, at most {np.abs(gap).max():.1e}',
  )


def _of_teacher(about: _About) -> Iterator[Finding]:
  seen, alone, after = about.seen, about.teacher.alone, about.teacher.after
  gain, low, high = difference(alone, seen.greedy)
  if not math.isnan(gain):
    status = 'ok' if low > 0 else 'warn'
    # A privilege may be worth having for what accuracy does not show.
    if high < 0 and about.teacher.privilege is None:
      status = 'refuse'
    yield about.judge(
      'headroom',
      gain,
      f'teacher {alone.accuracy:.3f} minus student; 95 % {low:.2f} to'
      f' {high:.2f}',
      status=status,
      **about.alone,
    )
  yield about.judge(
    'teacher truncation',
    np.mean(alone.truncated),
    'of greedy responses hit the limit; length'
    f' {np.mean(alone.response_length):.1f}',
    **about.alone,
  )
  base = seen.samples[0].accuracy
  if alone.accuracy - base < _HEADROOM or math.isnan(base):
    return
  left = {
    share: kept_headroom(alone.accuracy, answers.accuracy, base)
    for share, answers in after.items()
  }
  others = (f'{x:.2f} at {s:.0%}' for s, x in left.items() if s != 0.5)
  text = f'of headroom left half-way; {", ".join(others)}'
  yield about.judge('prefixes', left[0.5], text, **about.why)


def _of_states(about: _About) -> Iterator[Finding]:
  readings, mean = about.teacher.readings, about.mean
  why = about.why or about.alone
  k = min(TOP, about.names['vocab_size'])
  yield about.judge(
    'repeatability',
    about.teacher.repeats,
    'largest difference, the same text scored twice',
  )
  yield about.judge(
    'distance',
    mean(readings.reverse_kl),
    f'nats per token to the teacher, {about.seen.mask.sum()} tokens',
    **why,
  )
  text = 'of tokens: both have the same likeliest id'
  yield about.judge('agreement', mean(readings.agreement), text, **why)
  text = f"of the {k} likeliest ids are the teacher's, too"
  yield about.judge('overlap', mean(readings.overlap), text, **why)
  text = "student's mass on ids that are likely to both"
  yield about.judge('overlap mass', mean(readings.overlap_mass), text, **why)
  entropies = mean(readings.student_entropy), mean(readings.target_entropy)
  yield about.judge(
    'entropy',
    entropies[0] / math.log(about.names['vocab_size']),
    f'of log V; student {entropies[0]:.2f} nats, teacher {entropies[1]:.2f}',
    **about.why,
  )


def _of_support(about: _About, settings) -> Iterator[Finding]:
  if about.teacher.on_support is None:
    return
  term, k = support_of(settings)
  readings, mean = about.teacher.on_support, about.mean
  masses = mean(readings.student_mass), mean(readings.target_mass)
  yield about.judge(
    'support mass',
    min(masses),
    f'on {k} ids: student {masses[0]:.3f}, teacher {masses[1]:.3f}; overlap'
    f' {mean(readings.overlap):.2f}',
    term=term,
    more=4 * k,
    **about.why,
  )


def _of_privilege(about: _About) -> Iterator[Finding]:
  if about.teacher.privilege is None:
    return
  information, distance = map(about.mean, about.teacher.privilege)
  if math.isnan(information):
    text = 'not measured: no privilege of another example fits in its place'
    yield about.judge('privilege', information, text, status='warn')
    return
  yield about.judge(
    'privilege',
    information / distance if distance else 0.0,
    f'of the loss tells which one was shown: {information:.3f} of'
    f' {distance:.3f} nats',
    status='ok' if information < _LITTLE else None,
  )


def _of_loss(about: _About, settings) -> Iterator[Finding]:
  for term, pull in about.seen.pulls.items():
    if settings.loss[term].objective in OF_OTHERS:
      continue
    text = f'norm of the gradient of term {term}'
    yield about.judge('signal', pull.apart, text, term=term)
    if not pull.apart >= CHECKS['signal'].warn:
      continue
    yield about.judge(
      'rest',
      pull.at_rest / pull.apart,
      f'of that left at student = teacher; value {pull.value:.1e}',
      term=term,
    )
