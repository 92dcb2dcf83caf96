"""What the doctor looks at: limits, whose they are, what else goes wrong."""

from collections.abc import Iterable
from typing import NamedTuple

STATUSES = ('ok', 'warn', 'refuse')  # from good to bad


class Check(NamedTuple):
  """One thing that is measured as a number, and how it is judged.

  Attributes:
    bound: 'at most' or 'at least'.
    warn: the last healthy value.
    refuse: the last value with which training could still do good; None where
      no value is that bad.
    source: who found the limit, or why it is where it is.
    mechanism: what goes wrong beyond it.
    fix: the change of the config; {stage} and other names are filled in.
  """

  bound: str
  warn: float
  refuse: float | None
  source: str
  mechanism: str
  fix: str


class Finding(NamedTuple):
  """What was measured of one check, and what it means.

  Attributes:
    stage: of the config; '' where it concerns them all.
    check: a key of CHECKS.
    status: of STATUSES.
    number: what was measured; NaN where it is no number.
    threshold: in words, such as 'at most 0.2'.
    meaning: what the number is.
    source, mechanism, fix: of the check; empty where the status is 'ok'.
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


_FOUND = 'docs/findings.md'
_PAGES = 'the pairs of docs/doctor.md'
_RETHINKING = 'Rethinking OPD, arXiv 2604.13016'
_REVISITING = 'Revisiting OPD, arXiv 2603.25562'
_FACES = 'Many Faces of OPD, arXiv 2605.11182'
_BITS = 'the same program on the same input; any other number is a fault'
_STRANGER = (
  'stranger teacher: it thinks in another way than the student, so that on the'
  " student's states its likeliest tokens are not among the student's, and what"
  ' it teaches is not within reach'
)
_OWN_LINE = (
  "config.models.{teacher}.path = a teacher of the student's own line (the same"
  ' base, improved by RL); or imitate this teacher in a dataset stage first'
)
COLD = (
  'cold student: its own responses are no attempts at the task yet, and a'
  ' teacher has nothing to say about such text'
)
WARM = (
  "config.stages: SFT first, a stage with source='dataset' on responses of"
  ' {teacher}, before {stage!r}'
)
UNREAD = (
  'unread context: under its context the student is not itself any more, as one'
  ' that has never learnt to read such a context'
)
READABLE = (
  'config.{stage}.contexts.{role} = a context of a form that the model knows;'
  ' or another model for a teacher'
)

CHECKS = {
  'tokenizer': Check(
    *('at most', 0, 0, 'scores are compared id by id'),
    'an id is one token to a model and another, or none, to the next: its'
    ' scores are noise',
    'config.models.{model}.path = a model with the tokenizer of {first}',
  ),
  'special tokens': Check(
    *('at most', 0, None, f'{_REVISITING}, failure mode 3'),
    'a mark that is one token to one model and plain text to another costs'
    ' tens of nats where it stands, and these few tokens rule the gradient',
    'config.models.{model}.path = a model with the special tokens of {first}',
  ),
  'stop tokens': Check(
    *('at most', 0, 0.999, f'length explosion, {_FOUND}'),
    'stop mismatch: the teacher ends a response with a token that does not'
    " end the student's, which learns to go on to the limit",
    'eos_token_id in generation_config.json of {model}: the stops of {first}',
  ),
  'chat template': Check(
    *('at most', 0, None, f'{_RETHINKING}, section 4.5'),
    'all models read prompts in the template of {first}; {model} was trained on'
    ' another and is not itself in this one',
    'config.tokenizer = the folder whose template both know, or config.chat_template_kwargs'
    ' (enable_thinking) such that they agree',
  ),
  'padding': Check(
    *('at most', 0.01, 0.5, 'what is cut off is a hundredth of the student'),
    'the head has rows beyond the tokenizer, and the student believes in them;'
    ' their mass is taken away and the rest scaled up',
    'config.models.{student}.path = a model trained with this tokenizer',
  ),
  'demonstrations': Check(
    *('at most', 0, None, 'data/prompts.py, check_boundary'),
    'imitation sees other tokens than the chat template renders',
    'config.chat_template_kwargs, such as dict(enable_thinking=False)',
  ),
  'dropped prompts': Check(
    *('at most', 0.01, 0.5, 'the share of bad rows that data/ lets pass'),
    'long prompts are left out, and with them the tasks that have long ones',
    'config.max_prompt_tokens = {longest}',
  ),
  'answers': Check(
    *('at most', 0, None, 'no reward and no accuracy without a reference'),
    'these rows cannot be graded, so nobody sees whether they are learnt',
    'config.data.answer_field = the field of the reference',
  ),
  'rewards': Check(
    *('at least', 2, None, 'one value tells nothing apart'),
    'constant reward: as good as no reward; often the answer is looked for in'
    ' another form than models write',
    'config.reward = the function that reads answers of this form',
  ),
  'equal groups': Check(
    *('at most', 0.8, None, 'dynamic sampling of DAPO, arXiv 2503.14476'),
    'where all responses to a prompt earn the same, none is the better one',
    'config.{stage}.data = prompts that are neither always nor never solved',
  ),
  'student': Check(
    *('at least', 0.2, 0.01, f'.06 to .12 stays, .57 to .75 learns: {_FOUND}'),
    COLD,
    WARM,
  ),
  'distance': Check(
    *('at most', 1.5, None, f'.3 to 1.1 learns, 4.6 to 8 does not: {_FOUND}'),
    'the student is far from its teacher, and a truncated loss then pushes mass'
    ' out of its support',
    'config.{stage}.terms: the whole vocabulary, without support; or SFT first',
  ),
  'truncation': Check(
    *('at most', 0.2, 0.8, f'StableOPD, arXiv 2604.08527; {_FOUND}'),
    'responses run into the limit; on cut-off and repeating text the teacher is'
    ' no guide, and lengths grow',
    'config.max_response_tokens = {longer}, if the text is sound; else SFT'
    ' first',
  ),
  'teacher truncation': Check(
    *('at most', 0.2, 0.8, 'as for the student'),
    'the teacher itself does not come to an end within the limit, and teaches'
    ' not to',
    'config.max_response_tokens = {longer}, or a template without thinking',
  ),
  'headroom': Check(
    *('at least', 0, 0, f'{_RETHINKING}, reverse distillation, section 4.3'),
    'no headroom: the teacher does not solve more than the student, whom'
    ' distillation pulls to where the teacher is',
    'config.models.{teacher} = a teacher that solves more of these prompts',
  ),
  'prefixes': Check(
    *('at least', 0.1, None, f'.42 trains, .06 collapses, {_RETHINKING}, 4.6'),
    "prefix distortion: half-way through the student's text the teacher cannot"
    ' save the answer any more, so its later tokens teach little',
    'config.max_response_tokens = {shorter} at first; or SFT first',
  ),
  'repeatability': Check(
    *('at most', 0, 0.01, _BITS),
    'the teacher, scoring the same text twice, disagrees with itself: noise'
    ' in every step, or numbers that are not finite',
    "config.compute_dtype = 'float32'",
  ),
  'sampler': Check(
    *('at most', 1e-3, 0.1, 'documented alarm of NeMo RL and Tinker'),
    'who samples is not who learns: log-probs while decoding differ from those'
    ' of the learner, so that on-policy is off-policy',
    "config.compute_dtype = 'float32'",
  ),
  'rest': Check(
    *('at most', 0.01, None, f'losses/gradient_check.py; {_FACES}, eq. 6 to 9'),
    'the loss moves a student that equals its teacher, and will in the end move'
    ' it away',
    "config.{stage}.terms.{term}.divergence = 'stop_gradient_reverse_kl'; or"
    " support.tail = 'bucket'",
  ),
  'signal': Check(
    *('at least', 1e-6, 1e-6, 'losses/gradient_check.py'),
    'the loss has no gradient on these responses: nothing will be learnt',
    'config.{stage}.terms.{term}: another objective; or, where the teacher is'
    ' the student itself, contexts that tell it more',
  ),
  'overlap': Check(
    *(
      'at least',
      0.45,
      None,
      f'.70 to .78 at the start of runs, {_RETHINKING};'
      f' .56 learns, configs/quickstart.py; a weak sign: {_FOUND}',
    ),
    _STRANGER,
    _OWN_LINE,
  ),
  'overlap mass': Check(
    *(
      'at least',
      0.95,
      None,
      f'.97 to 1 learns, .84 to .92 does not: {_FOUND}',
    ),
    _STRANGER,
    _OWN_LINE,
  ),
  'agreement': Check(
    *('at least', 0.6, 0.4, f'.92 learns, .42 a stranger: {_PAGES}'),
    _STRANGER,
    _OWN_LINE,
  ),
  'support mass': Check(
    *(
      'at least',
      0.9,
      0.5,
      f'.97 to .99 of 16 ids, {_RETHINKING}, 4.4',
    ),
    'too much of what the models believe lies outside the support, where the'
    ' loss does not look',
    'config.{stage}.terms.{term}.support.k = {more}, or no support at all',
  ),
  'entropy': Check(
    *('at most', 0.2, None, f'.02 learns, .23 to .45 stays: {_FOUND}'),
    'the student is near to guessing evenly among all tokens',
    WARM,
  ),
  'privilege': Check(
    *('at most', 0.1, 0.5, f'0 learns, .35 does not: {_PAGES}; {_FACES}'),
    'instance-specific privilege: most of the loss is what the privilege tells'
    ' of this one response; no student without it can learn that, and averaging'
    ' the teachers unlearns what it knew',
    'config.{stage}.contexts.{role} = one rule for all examples, such as'
    ' with_system; or an own teacher model instead',
  ),
  'not trained yet': Check(
    *('at most', 0, None, 'a stage begins with what the one before it made'),
    'these weights come from stages that have not run; nothing that is measured'
    ' now would hold then',
    'run those stages, jopd train --workdir=DIR "--config.stages={earlier}",'
    ' then jopd doctor --workdir=DIR',
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
  """The finding of a check from its number.

  Args:
    check: a key of CHECKS.
    number: what was measured. NaN is never healthy.
    meaning: what the number is.
    stage: of the config.
    status: where more than the number decides.
    mechanism, fix: where another finding explains this one.
    names: what the text of the mechanism and the fix is filled with.

  Example:
    >>> judge('truncation', 0.5, 'share of responses', longer=64).status
    'warn'
  """
  rule = CHECKS[check]
  status = status or _status(rule, number)
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


def _status(rule: Check, number) -> str:
  within = lambda limit: (
    number <= limit if rule.bound == 'at most' else number >= limit
  )
  if within(rule.warn):
    return 'ok'
  return 'warn' if rule.refuse is None or within(rule.refuse) else 'refuse'


def worst(findings: Iterable[Finding]) -> str:
  """The worst status of all; 'ok' of none."""
  return max((f.status for f in findings), key=STATUSES.index, default='ok')
