"""From observations to findings: cases by hand, without a model."""

import types

import numpy as np
import pytest

from jopd.doctor.rules import judge_stage, support_of
from jopd.doctor.stage import GradedResponses, Observations, TeacherObservations
from jopd.doctor.token_statistics import Readings, TermGradient
from jopd.run.loss import read_terms
from jopd.run.sources import Sources

ROWS, STEPS = 100, 4
MASK = np.ones((ROWS, STEPS), bool)


def responses(right, *, truncated=0, graded=ROWS):
  """Of 100 prompts: how many are graded, and of these right."""
  reward = np.full(ROWS, np.nan)
  reward[:graded] = 0
  reward[:right] = 1
  length = np.full(ROWS, STEPS)
  cut = np.arange(ROWS) < truncated
  return GradedResponses(np.zeros((ROWS, STEPS), np.int32), length, cut, reward)


def readings(**numbers):
  healthy = dict(
    student_logp=-0.5,
    target_logp=-0.5,
    student_entropy=0.5,
    target_entropy=0.5,
    reverse_kl=0.5,
    overlap=0.7,
    agreement=0.9,
    overlap_mass=0.98,
    student_mass=0.98,
    target_mass=0.98,
    padding=0.0,
  )
  return Readings(
    **{n: np.full(MASK.shape, x) for n, x in (healthy | numbers).items()}
  )


def teacher(**fields):
  healthy = TeacherObservations(
    alone=responses(90),
    after={0.25: responses(80), 0.5: responses(70), 0.75: responses(60)},
    repeats=0.0,
    readings=readings(),
    on_support=None,
    privilege=None,
  )
  return healthy._replace(**fields)


HEALTHY = Observations(
  greedy=responses(50),
  samples=[responses(50)],
  mask=MASK,
  sampler_gap=np.zeros(MASK.sum()),
  gradients={'match': TermGradient(0.0, 0.0, 1.0)},
  teachers={'teacher': teacher()},
)
TERM = dict(objective='divergence', divergence='reverse_kl')


def read(**terms):
  return read_terms(terms, Sources({('student',): 1.0}))


def judged(observed, student='s', **terms):
  """Check -> finding; the last one of those that are there per teacher."""
  names = {role: role[0] for role in observed.teachers}
  stage = types.SimpleNamespace(
    name='distil',
    student=types.SimpleNamespace(model=student),
    teachers=types.SimpleNamespace(models=names),
  )
  findings = judge_stage(
    observed,
    stage=stage,
    terms=read(**(terms or {'match': TERM})),
    vocab_size=1000,
    response_tokens=64,
  )
  return {finding.check: finding for finding in findings}


def statuses(observed, **terms):
  found = judged(observed, **terms).values()
  return {f.check: f.status for f in found if f.status != 'ok'}


def with_teacher(**fields):
  return HEALTHY._replace(teachers={'teacher': teacher(**fields)})


def test_a_healthy_stage():
  assert statuses(HEALTHY) == {}
  # (70 - 50) / (90 - 50)
  assert judged(HEALTHY)['prefixes'].number == pytest.approx(0.5)


@pytest.mark.parametrize(
  'observed, expected',
  [
    # 52 against 50 of 100 is no difference that could be relied on.
    (with_teacher(alone=responses(52)), {'headroom': 'warn'}),
    (with_teacher(alone=responses(20)), {'headroom': 'refuse'}),
    (
      with_teacher(alone=responses(90, truncated=30)),
      {'teacher truncation': 'warn'},
    ),
    (
      with_teacher(after=dict.fromkeys((0.25, 0.5, 0.75), responses(52))),
      {'prefixes': 'warn'},
    ),
    (with_teacher(repeats=1e-6), {'repeatability': 'warn'}),
    (with_teacher(repeats=float('nan')), {'repeatability': 'refuse'}),
    (with_teacher(readings=readings(padding=0.1)), {'padding': 'warn'}),
    (with_teacher(readings=readings(agreement=0.5)), {'agreement': 'warn'}),
    (
      HEALTHY._replace(samples=[responses(50, truncated=30)]),
      {'truncation': 'warn'},
    ),
    (
      HEALTHY._replace(sampler_gap=np.full(MASK.sum(), -0.01)),
      {'sampler': 'warn'},
    ),
    # Every response to a prompt earns what the others do.
    (HEALTHY._replace(samples=[responses(50)] * 3), {'equal groups': 'warn'}),
    # Few are right, but they are attempts.
    (HEALTHY._replace(greedy=responses(2)), {'student': 'warn'}),
  ],
)
def test_one_thing_that_is_wrong(observed, expected):
  assert statuses(observed) == expected


def test_a_privileged_teacher_may_be_no_better_at_the_task():
  # A rule such as 'be brief' is worth having for what accuracy does not show.
  nothing = (np.zeros(MASK.shape), np.ones(MASK.shape))
  observed = with_teacher(alone=responses(20), privilege=nothing)
  assert statuses(observed) == {'headroom': 'warn'}


def test_a_student_that_its_context_makes_a_stranger():
  # Kills: the advice to take another model, for a model that teaches itself.
  nothing = (np.zeros(MASK.shape), np.ones(MASK.shape))
  far = readings(agreement=0.1)
  observed = with_teacher(
    alone=responses(0, truncated=90), readings=far, privilege=nothing
  )
  for student, mechanism in (('t', 'unreadable context'), ('s', 'stranger')):
    found = judged(observed, student=student)
    assert found['agreement'].mechanism.startswith(mechanism)
  found = judged(observed, student='t')
  assert found['agreement'].fix.startswith(
    'config.distil.teacher_contexts.teacher'
  )
  assert found['headroom'].mechanism == found['agreement'].mechanism
  assert found['teacher truncation'].fix == found['agreement'].fix


def test_a_privilege_that_tells_little_in_nats_is_fine():
  # Kills: a share of next to nothing, where teacher and student agree.
  of = lambda nats: (np.full(MASK.shape, nats), np.full(MASK.shape, nats))
  assert statuses(with_teacher(privilege=of(1e-4))) == {}
  assert statuses(with_teacher(privilege=of(0.5))) == {'privilege': 'refuse'}
  # No number at all, where no other privilege fits.
  nan = judged(with_teacher(privilege=of(np.nan)))['privilege']
  assert nan.status == 'warn' and nan.meaning.startswith('not measured')


def test_a_reward_that_never_matches():
  nothing = dict.fromkeys((0.25, 0.5, 0.75), responses(0))
  observed = HEALTHY._replace(
    greedy=responses(0),
    samples=[responses(0)],
    teachers={'teacher': teacher(alone=responses(0), after=nothing)},
  )
  found = statuses(observed)
  assert found == {'rewards': 'warn', 'student': 'warn', 'headroom': 'warn'}
  # Not a cold student: its text is near to the teacher's, and ends.
  assert judged(observed)['rewards'].mechanism.startswith('constant reward')


def test_without_answers_there_is_no_finding_on_accuracy():
  # Kills: an accuracy of 0 for prompts that cannot be graded.
  none = responses(0, graded=0)
  observed = HEALTHY._replace(
    greedy=none,
    samples=[none],
    teachers={'teacher': teacher(alone=none, after={0.5: none})},
  )
  found = judged(observed)
  assert statuses(observed) == {}
  assert not {'student', 'headroom', 'prefixes', 'rewards'} & found.keys()
  # Whether it is cold is still known.
  far = teacher(alone=none, readings=readings(reverse_kl=5.0))
  assert statuses(observed._replace(teachers={'teacher': far})) == {
    'student': 'refuse',
    'distance': 'warn',
  }


def test_a_cold_student_explains_the_rest():
  observed = HEALTHY._replace(
    greedy=responses(0),
    samples=[responses(0, truncated=90)],
    teachers={
      'teacher': teacher(readings=readings(agreement=0.1, reverse_kl=6.0))
    },
  )
  found = judged(observed)
  for check in ('student', 'truncation', 'agreement', 'distance'):
    assert found[check].mechanism.startswith('cold student'), check


class TestLoss:
  def test_a_loss_that_moves_a_student_at_rest(self):
    observed = HEALTHY._replace(
      gradients={'match': TermGradient(-0.2, 0.3, 1.0)}
    )
    found = judged(observed)
    assert (found['equality'].status, found['equality'].number) == ('warn', 0.3)
    assert found['equality'].fix.startswith(
      'config.distil.loss.match.divergence'
    )

  @pytest.mark.parametrize('norm', [0.0, float('nan')])
  def test_a_loss_without_a_gradient(self, norm):
    # Such as that of a teacher with the student's weights and prompt.
    observed = HEALTHY._replace(
      gradients={'match': TermGradient(0.0, 0.0, norm)}
    )
    assert statuses(observed) == {'gradient': 'refuse'}

  def test_imitation_promises_nothing(self):
    observed = HEALTHY._replace(gradients={'demo': TermGradient(3.0, 1.0, 1.0)})
    demo = dict(objective='negative_log_likelihood')
    assert statuses(observed, demo=demo) == {}

  def test_the_mass_on_the_support_of_the_loss(self):
    support = dict(name='top_k', k=4, of='target', tail='bucket')
    few = readings(student_mass=0.99, target_mass=0.6, overlap=0.25)
    observed = with_teacher(on_support=few)
    found = judged(observed, match=TERM | dict(support=support))['support mass']
    assert (found.status, found.number) == ('warn', pytest.approx(0.6))
    assert found.fix.startswith('config.distil.loss.match.support.k = 16')
    assert 'overlap 0.25' in found.meaning


def test_findings_name_the_teacher_if_there_are_several():
  sick = teacher(readings=readings(agreement=0.1))
  observed = HEALTHY._replace(teachers={'good': teacher(), 'odd': sick})
  found = judged(observed)['agreement']
  assert found.status == 'refuse' and found.meaning.startswith('odd: ')
  assert 'config.models.o.path' in found.fix
  # Findings on the student name no teacher.
  assert not judged(observed)['student'].meaning.startswith('good: ')
  assert not judged(observed)['equality'].meaning.startswith('odd: ')


def test_the_support_of_a_stage():
  with_support = lambda **support: TERM | dict(support=support)
  top = lambda k: with_support(name='top_k', k=k)
  full = read(a=TERM, b=TERM | dict(support='full'))
  assert support_of(full, 1000) is None
  assert support_of(read(a=top(64), b=top(8), c=TERM), 1000) == ('b', 8)

  # Kills: a user's support that counts as the whole vocabulary, as its size
  # has another name.
  def first(student_logp, target_logp, *, count):
    return student_logp[..., :count], target_logp[..., :count]

  own = read(a=with_support(name=first, count=5))
  assert support_of(own, 1000) == ('a', 5)
