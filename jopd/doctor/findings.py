"""The checks of the doctor: limits, what goes wrong beyond them, the fix."""

from collections.abc import Iterable, Sequence
import functools
import json
import math
import textwrap
from typing import NamedTuple

STATUSES = ('ok', 'warn', 'refuse')  # from good to bad
_WIDTH = 100
_INDENT = 10
_SUMMARY = {
  'ok': 'healthy: no problem found',
  'warn': 'can work, with warnings: {warn}',
  'refuse': 'will not work: {refuse} refused, warnings: {warn}',
}


class Check(NamedTuple):
  """A number and its limits.

  Attributes:
    bound: 'at most' or 'at least'.
    warn: the last healthy value.
    refuse: the last value with which training could still help; None if no
      value is that bad.
    source: where the limit comes from.
    mechanism: what goes wrong beyond it.
    fix: the change of the config. {stage} and other names are filled in.
  """

  bound: str
  warn: float
  refuse: float | None
  source: str
  mechanism: str
  fix: str


class Finding(NamedTuple):
  """The result of a check.

  Attributes:
    stage: of the config; '' for all stages.
    check: a key of CHECKS.
    status: of STATUSES.
    number: the measured value; may be NaN.
    threshold: in words, such as 'at most 0.2'.
    meaning: of the number.
    source, mechanism, fix: of the check; empty if the status is 'ok'.
  """

  stage: str
  check: str
  status: str
  number: float
  threshold: str
  meaning: str
  source: str = ''
  mechanism: str = ''
  fix: str = ''


_at_most = functools.partial(Check, 'at most')
_at_least = functools.partial(Check, 'at least')

_FINDINGS = 'docs/findings.md'
_PAIRS = 'the pairs of docs/doctor.md'
_RETHINKING = 'Rethinking OPD, arXiv 2604.13016'
_REVISITING = 'Revisiting OPD, arXiv 2603.25562'
_FACES = 'Many Faces of OPD, arXiv 2605.11182'
_STRANGER = (
  'stranger teacher: after the same text its most likely tokens are not among'
  " the student's, so the student cannot reach what it teaches"
)
_SAME_BASE = (
  'config.models.{teacher}.path = a teacher with the base model of the student,'
  ' improved by RL; or imitate this teacher in a dataset stage first'
)
COLD = (
  'cold student: its responses do not attempt the task yet, and the teacher has'
  ' no useful signal on such text'
)
WARM_UP = (
  "config.stages: SFT first, a stage with response_source='dataset' on"
  ' responses of {teacher}, before {stage!r}'
)
UNREADABLE = (
  'unreadable context: with this context the model no longer behaves like'
  ' itself, as it has not learned to read such a context'
)
READABLE = (
  'config.{stage}.teacher_contexts.{role} = a context in a form that the model'
  ' knows; or another model as the teacher'
)

CHECKS = {
  'tokenizer': _at_most(
    0,
    0,
    source='log-probs are compared id by id',
    mechanism='an id stands for different tokens in the two models, so the'
    " teacher's log-probs are noise",
    fix='config.models.{model}.path = a model with the tokenizer of {first}',
  ),
  'special tokens': _at_most(
    0,
    None,
    source=f'{_REVISITING}, failure mode 3',
    mechanism='a special token of one model is plain text to the other: it'
    ' costs tens of nats where it occurs, and dominates the gradient',
    fix='config.models.{model}.path = a model with the special tokens of'
    ' {first}',
  ),
  'stop tokens': _at_most(
    0,
    0.999,
    source=f'length explosion, {_FINDINGS}',
    mechanism='stop mismatch: the teacher ends a response with a token that'
    " does not end the student's, which learns to write up to the length limit",
    fix='eos_token_id in generation_config.json of {model}: the stop tokens of'
    ' {first}',
  ),
  'chat template': _at_most(
    0,
    None,
    source=f'{_RETHINKING}, section 4.5',
    mechanism='all models read prompts in the template of {first}; {model} was'
    ' trained on another one',
    fix='config.tokenizer = a folder with the template that both know, or'
    ' config.chat_template_kwargs (enable_thinking) with which they agree',
  ),
  'padding': _at_most(
    0.01,
    0.5,
    source='at most a hundredth of the probability is cut off',
    mechanism='the student gives probability to ids beyond the tokenizer, which'
    ' is removed before the rest is normalised',
    fix='config.models.{student}.path = a model trained with this tokenizer',
  ),
  'demonstrations': _at_most(
    0,
    None,
    source='data/prompts.py, check_boundary',
    mechanism='imitation sees other tokens than the chat template renders',
    fix='config.chat_template_kwargs, such as dict(enable_thinking=False)',
  ),
  'dropped prompts': _at_most(
    0.01,
    0.5,
    source='the default of max_bad_row_fraction',
    mechanism='long prompts are left out, and with them tasks that need long'
    ' prompts',
    fix='config.max_prompt_tokens = {longest}',
  ),
  'answers': _at_most(
    0,
    None,
    source='rewards and accuracy need an answer',
    mechanism='rows without an answer cannot be graded',
    fix='config.data.answer_field = the column of the answer',
  ),
  'rewards': _at_least(
    2,
    None,
    source='a single value does not distinguish responses',
    mechanism='constant reward: it has no effect; often the reward looks for'
    ' the answer in another form than the models write',
    fix='config.reward = a function that reads answers in this form',
  ),
  'equal groups': _at_most(
    0.8,
    None,
    source='dynamic sampling of DAPO, arXiv 2503.14476',
    mechanism='if all responses to a prompt have the same reward, none has an'
    ' advantage',
    fix='config.{stage}.data = prompts that are sometimes solved, not always',
  ),
  'student': _at_least(
    0.2,
    0.01,
    source=f'.06 to .12 does not learn, .57 to .75 learns: {_FINDINGS}',
    mechanism=COLD,
    fix=WARM_UP,
  ),
  'distance': _at_most(
    1.5,
    None,
    source=f'.3 to 1.1 learns, 4.6 to 8 does not: {_FINDINGS}',
    mechanism='the student is far from its teacher, and a truncated loss then'
    ' moves probability out of its support',
    fix='config.{stage}.loss: the whole vocabulary, without support; or SFT'
    ' first',
  ),
  'truncation': _at_most(
    0.2,
    0.8,
    source=f'StableOPD, arXiv 2604.08527; {_FINDINGS}',
    mechanism='responses reach the length limit; on truncated and repetitive'
    ' text the teacher gives no guidance, and lengths grow',
    fix='config.max_response_tokens = {longer}, if the text is sensible; else'
    ' SFT first',
  ),
  'teacher truncation': _at_most(
    0.2,
    0.8,
    source='as for the student',
    mechanism='the teacher itself does not end within the length limit, and'
    ' teaches not to end',
    fix='config.max_response_tokens = {longer}, or a template without thinking',
  ),
  'headroom': _at_least(
    0,
    0,
    source=f'{_RETHINKING}, reverse distillation, section 4.3',
    mechanism='no headroom: the teacher solves no more than the student, which'
    ' distillation moves towards the teacher',
    fix='config.models.{teacher} = a teacher that solves more of these prompts',
  ),
  'prefixes': _at_least(
    0.1,
    None,
    source=f'.42 trains, .06 collapses, {_RETHINKING}, 4.6',
    mechanism='prefix distortion: after half of the text of the student the'
    ' teacher can no longer reach the answer, so it teaches little on the later'
    ' tokens',
    fix='config.max_response_tokens = {shorter} at first; or SFT first',
  ),
  'repeatability': _at_most(
    0,
    0.01,
    source='the same program on the same input must give the same bits',
    mechanism='the teacher gives different numbers for the same text: noise in'
    ' every step, or numbers that are not finite',
    fix="config.compute_dtype = 'float32'",
  ),
  'sampler': _at_most(
    1e-3,
    0.1,
    source='documented alarm of NeMo RL and Tinker',
    mechanism='log-probs while decoding differ from those of the learner, so'
    ' that on-policy data is off-policy',
    fix="config.compute_dtype = 'float32'",
  ),
  'gradient check': _at_most(
    0,
    0,
    source='losses/gradient_check.py',
    mechanism='the term does not train what it claims on a small vocabulary,'
    ' where every gradient is enumerated',
    fix='config.{stage}.loss.{term}: {reason}',
  ),
  'equality': _at_most(
    0.01,
    None,
    source=f'losses/gradient_check.py; {_FACES}, eq. 6 to 9',
    mechanism='the loss moves a student that equals its teacher, and so away'
    ' from the teacher',
    fix="config.{stage}.loss.{term}.divergence = 'stop_gradient_reverse_kl'; or"
    " support.tail = 'bucket'",
  ),
  'gradient': _at_least(
    1e-6,
    1e-6,
    source='losses/gradient_check.py',
    mechanism='the loss has no gradient on these responses: nothing is learned',
    fix='config.{stage}.loss.{term}: another objective; or, for a student that'
    ' is its own teacher, a teacher context with more information',
  ),
  'overlap': _at_least(
    0.45,
    None,
    source=f'.70 to .78 at the start of runs, {_RETHINKING}; .56 learns,'
    f' configs/quickstart.py; a weak sign: {_FINDINGS}',
    mechanism=_STRANGER,
    fix=_SAME_BASE,
  ),
  'overlap mass': _at_least(
    0.95,
    None,
    source=f'.97 to 1 learns, .84 to .92 does not: {_FINDINGS}',
    mechanism=_STRANGER,
    fix=_SAME_BASE,
  ),
  'agreement': _at_least(
    0.6,
    0.4,
    source=f'.92 learns, .42 a stranger: {_PAIRS}',
    mechanism=_STRANGER,
    fix=_SAME_BASE,
  ),
  'support mass': _at_least(
    0.9,
    0.5,
    source=f'.97 to .99 of 16 ids, {_RETHINKING}, 4.4',
    mechanism='much of the probability lies outside the support, which the loss'
    ' does not see',
    fix='config.{stage}.loss.{term}.support.k = {more}, or no support at all',
  ),
  'entropy': _at_most(
    0.2,
    None,
    source=f'.02 learns, .23 to .45 does not: {_FINDINGS}',
    mechanism='the distribution of the student is almost uniform',
    fix=WARM_UP,
  ),
  'privilege': _at_most(
    0.1,
    0.5,
    source=f'0 learns, .35 does not: {_PAIRS}; {_FACES}',
    mechanism='instance-specific privilege: most of the loss depends on what'
    ' the context says of this one example; a student without it cannot learn'
    ' that, and unlearns what it knew by averaging the teachers',
    fix='config.{stage}.teacher_contexts.{role} = one rule for all examples,'
    ' such as with_system; or a separate teacher model',
  ),
  'not trained yet': _at_most(
    0,
    None,
    source='a stage starts from the models of the stages before it',
    mechanism='these weights come from stages that have not run; nothing'
    ' measured now would be true then',
    fix='run those stages, jopd train --workdir=DIR'
    ' "--config.stages={earlier}", then jopd doctor --workdir=DIR',
  ),
}


def judge(
  check: str,
  number,
  meaning: str,
  *,
  stage: str = '',
  status: str | None = None,
  mechanism: str | None = None,
  fix: str | None = None,
  **names,
) -> Finding:
  """The finding of a check.

  Args:
    check: a key of CHECKS.
    number: the measured value. NaN is never healthy.
    meaning: of the number.
    stage: of the config.
    status: if more than the number decides.
    mechanism, fix: if another finding explains this one.
    names: fill in the text of the mechanism and the fix.

  Example:
    >>> judge('truncation', 0.5, 'fraction of responses', longer=64).status
    'warn'
  """
  rule = CHECKS[check]
  if status is None:
    within = lambda limit: (
      number <= limit if rule.bound == 'at most' else number >= limit
    )
    if within(rule.warn):
      status = 'ok'
    elif rule.refuse is None or within(rule.refuse):
      status = 'warn'
    else:
      status = 'refuse'
  limit = rule.refuse if status == 'refuse' else rule.warn
  finding = Finding(
    stage, check, status, float(number), f'{rule.bound} {limit:g}', meaning
  )
  if status == 'ok':
    return finding
  return finding._replace(
    source=rule.source,
    mechanism=(mechanism or rule.mechanism).format(stage=stage, **names),
    fix=(fix or rule.fix).format(stage=stage, **names),
  )


def worst(findings: Iterable[Finding]) -> str:
  """The worst status; 'ok' without findings."""
  return max((f.status for f in findings), key=STATUSES.index, default='ok')


def page(findings: Sequence[Finding]) -> str:
  """The findings as text of at most 100 columns, one line for each.

  Mechanism, fix and source follow a finding that is not 'ok'.

  Args:
    findings: in the order of the page; those of a stage together.
  """
  lines, stage, explained = [], None, {}
  for finding in findings:
    if finding.stage != stage:
      stage = finding.stage
      lines += [*([''] if lines else []), stage or 'all models']
    lines += _line(finding)
    if finding.status != 'ok':
      # One cause may show in many numbers, and is explained once.
      cause = finding.mechanism, finding.fix
      lines += _explanation(finding, explained.get(cause))
      explained.setdefault(cause, finding.check)
  statuses = [f.status for f in findings]
  summary = _SUMMARY[worst(findings)].format(
    **{status: statuses.count(status) for status in STATUSES}
  )
  return '\n'.join([*lines, '', summary])


def as_json(findings: Sequence[Finding]) -> str:
  """The worst status and all findings as JSON; null for NaN and infinity."""
  rows = [finding._asdict() for finding in findings]
  for row in rows:
    if not math.isfinite(row['number']):
      row['number'] = None
  document = {'status': worst(findings), 'findings': rows}
  return json.dumps(document, indent=2, allow_nan=False)


def _line(finding: Finding) -> list[str]:
  number = '-' if math.isnan(finding.number) else f'{finding.number:.3g}'
  status = finding.status if finding.status == 'ok' else finding.status.upper()
  limit = finding.threshold.replace('at most', '<=').replace('at least', '>=')
  head = f'  {status:<6}  {finding.check:<18} {number:>8} {limit:<8}  '
  return _wrapped(head, finding.meaning)


def _explanation(finding: Finding, same_as: str | None) -> list[str]:
  """Why, fix and source, each on lines of its own."""
  texts = {'why': finding.mechanism, 'fix': finding.fix}
  if same_as:
    texts = {'why': f'as for {same_as}'}
  lines = []
  for word, text in (texts | {'source': finding.source}).items():
    lines += _wrapped(f'{"":{_INDENT}}{word:<8}', text)
  return lines


def _wrapped(head: str, text: str) -> list[str]:
  """A text behind its head, in lines of the width of the page."""
  return textwrap.wrap(
    text, _WIDTH, initial_indent=head, subsequent_indent=' ' * len(head)
  )
