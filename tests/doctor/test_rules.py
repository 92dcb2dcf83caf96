"""What was observed becomes findings: cases by hand, without any model."""

import types

from ml_collections import ConfigDict
import numpy as np
import pytest

from jopd.doctor.answers import Answers
from jopd.doctor.rules import OfTeacher, Seen, judge_stage, support_of
from jopd.doctor.token_statistics import Pull, Readings

ROWS, STEPS = 100, 4
MASK = np.ones((ROWS, STEPS), bool)


def answers(right, *, truncated=0, graded=ROWS):
  """Of 100 prompts: how many are graded, and of these right."""
  reward = np.full(ROWS, np.nan)
  reward[:graded] = 0
  reward[:right] = 1
  length = np.full(ROWS, STEPS)
  cut = np.arange(ROWS) < truncated
  return Answers(np.zeros((ROWS, STEPS), np.int32), length, cut, reward)


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
  healthy = OfTeacher(
    alone=answers(90),
    after={0.25: answers(80), 0.5: answers(70), 0.75: answers(60)},
    repeats=0.0,
    readings=readings(),
    on_support=None,
    privilege=None,
  )
  return healthy._replace(**fields)


HEALTHY = Seen(
  greedy=answers(50),
  samples=[answers(50)],
  mask=MASK,
  sampler_gap=np.zeros(MASK.sum()),
  pulls={'match': Pull(0.0, 0.0, 1.0)},
  teachers={'teacher': teacher()},
)
TERM = dict(objective='divergence', divergence='reverse_kl')


def judged(seen, student='s', **terms):
  """Check -> finding; the last one of those that are there per teacher."""
  names = {role: role[0] for role in seen.teachers}
  stage = types.SimpleNamespace(name='distil', student=student, teachers=names)
  findings = judge_stage(
    seen,
    stage=stage,
    settings=ConfigDict({'terms': terms or {'match': TERM}}),
    vocab_size=1000,
    response_tokens=64,
  )
  return {finding.check: finding for finding in findings}


def statuses(seen, **terms):
  found = judged(seen, **terms).values()
  return {f.check: f.status for f in found if f.status != 'ok'}


def with_teacher(**fields):
  return HEALTHY._replace(teachers={'teacher': teacher(**fields)})


def test_a_healthy_stage():
  assert statuses(HEALTHY) == {}
  # (70 - 50) / (90 - 50)
  assert judged(HEALTHY)['prefixes'].number == pytest.approx(0.5)


@pytest.mark.parametrize(
  'seen, expected',
  [
    # 52 against 50 of 100 is no difference that could be relied on.
    (with_teacher(alone=answers(52)), {'headroom': 'warn'}),
    (with_teacher(alone=answers(20)), {'headroom': 'refuse'}),
    (
      with_teacher(alone=answers(90, truncated=30)),
      {'teacher truncation': 'warn'},
    ),
    (
      with_teacher(after=dict.fromkeys((0.25, 0.5, 0.75), answers(52))),
      {'prefixes': 'warn'},
    ),
    (with_teacher(repeats=1e-6), {'repeatability': 'warn'}),
    (with_teacher(repeats=float('nan')), {'repeatability': 'refuse'}),
    (with_teacher(readings=readings(padding=0.1)), {'padding': 'warn'}),
    (with_teacher(readings=readings(agreement=0.5)), {'agreement': 'warn'}),
    (
      HEALTHY._replace(samples=[answers(50, truncated=30)]),
      {'truncation': 'warn'},
    ),
    (
      HEALTHY._replace(sampler_gap=np.full(MASK.sum(), -0.01)),
      {'sampler': 'warn'},
    ),
    # Every response to a prompt earns what the others do.
    (HEALTHY._replace(samples=[answers(50)] * 3), {'equal groups': 'warn'}),
    # Few are right, but they are attempts.
    (HEALTHY._replace(greedy=answers(2)), {'student': 'warn'}),
  ],
)
def test_one_thing_that_is_wrong(seen, expected):
  assert statuses(seen) == expected


def test_a_privileged_teacher_may_be_no_better_at_the_task():
  # A rule such as 'be brief' is worth having for what accuracy does not show.
  nothing = (np.zeros(MASK.shape), np.ones(MASK.shape))
  seen = with_teacher(alone=answers(20), privilege=nothing)
  assert statuses(seen) == {'headroom': 'warn'}


def test_a_student_that_its_context_makes_a_stranger():
  # Kills: the advice to take another model, for a model that teaches itself.
  nothing = (np.zeros(MASK.shape), np.ones(MASK.shape))
  far = readings(agreement=0.1)
  seen = with_teacher(
    alone=answers(0, truncated=90), readings=far, privilege=nothing
  )
  for student, mechanism in (('t', 'unread context'), ('s', 'stranger')):
    found = judged(seen, student=student)
    assert found['agreement'].mechanism.startswith(mechanism)
  found = judged(seen, student='t')
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
  nothing = dict.fromkeys((0.25, 0.5, 0.75), answers(0))
  seen = HEALTHY._replace(
    greedy=answers(0),
    samples=[answers(0)],
    teachers={'teacher': teacher(alone=answers(0), after=nothing)},
  )
  found = statuses(seen)
  assert found == {'rewards': 'warn', 'student': 'warn', 'headroom': 'warn'}
  # Not a cold student: its text is near to the teacher's, and ends.
  assert judged(seen)['rewards'].mechanism.startswith('constant reward')


def test_without_references_nothing_is_said_of_accuracy():
  # Kills: an accuracy of 0 for prompts that cannot be graded.
  none = answers(0, graded=0)
  seen = HEALTHY._replace(
    greedy=none,
    samples=[none],
    teachers={'teacher': teacher(alone=none, after={0.5: none})},
  )
  found = judged(seen)
  assert statuses(seen) == {}
  assert not {'student', 'headroom', 'prefixes', 'rewards'} & found.keys()
  # Whether it is cold can still be told.
  far = teacher(alone=none, readings=readings(reverse_kl=5.0))
  assert statuses(seen._replace(teachers={'teacher': far})) == {
    'student': 'refuse',
    'distance': 'warn',
  }


def test_a_cold_student_explains_the_rest():
  seen = HEALTHY._replace(
    greedy=answers(0),
    samples=[answers(0, truncated=90)],
    teachers={
      'teacher': teacher(readings=readings(agreement=0.1, reverse_kl=6.0))
    },
  )
  found = judged(seen)
  for check in ('student', 'truncation', 'agreement', 'distance'):
    assert found[check].mechanism.startswith('cold student'), check


class TestLoss:
  def test_a_loss_that_moves_a_student_at_rest(self):
    seen = HEALTHY._replace(pulls={'match': Pull(-0.2, 0.3, 1.0)})
    found = judged(seen)
    assert (found['rest'].status, found['rest'].number) == ('warn', 0.3)
    assert found['rest'].fix.startswith('config.distil.loss.match.divergence')

  @pytest.mark.parametrize('norm', [0.0, float('nan')])
  def test_a_loss_without_a_gradient(self, norm):
    # Such as that of a teacher with the student's weights and prompt.
    seen = HEALTHY._replace(pulls={'match': Pull(0.0, 0.0, norm)})
    assert statuses(seen) == {'signal': 'refuse'}

  def test_imitation_promises_nothing(self):
    seen = HEALTHY._replace(pulls={'demo': Pull(3.0, 1.0, 1.0)})
    demo = dict(objective='negative_log_likelihood')
    assert statuses(seen, demo=demo) == {}

  def test_the_mass_on_the_support_of_the_loss(self):
    support = dict(name='top_k', k=4, of='target', tail='bucket')
    few = readings(student_mass=0.99, target_mass=0.6, overlap=0.25)
    seen = with_teacher(on_support=few)
    found = judged(seen, match=TERM | dict(support=support))['support mass']
    assert (found.status, found.number) == ('warn', pytest.approx(0.6))
    assert found.fix.startswith('config.distil.loss.match.support.k = 16')
    assert 'overlap 0.25' in found.meaning


def test_several_teachers_are_told_apart():
  sick = teacher(readings=readings(agreement=0.1))
  seen = HEALTHY._replace(teachers={'good': teacher(), 'odd': sick})
  found = judged(seen)['agreement']
  assert found.status == 'refuse' and found.meaning.startswith('odd: ')
  assert 'config.models.o.path' in found.fix
  # What is said of the student is of no teacher.
  assert not judged(seen)['student'].meaning.startswith('good: ')
  assert not judged(seen)['rest'].meaning.startswith('odd: ')


def test_the_support_of_a_stage():
  settings = lambda **terms: ConfigDict({'terms': terms})
  of = lambda k: TERM | dict(support=dict(name='top_k', k=k))
  assert support_of(settings(a=TERM, b=TERM | dict(support='full'))) is None
  assert support_of(settings(a=of(64), b=of(8), c=TERM)) == ('b', 8)
