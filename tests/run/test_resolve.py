"""Names become the functions they name, with their arguments, or one line."""

from functools import partial
import itertools

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import pytest

from jopd import losses
from jopd.data import contexts
from jopd.data.examples import Example
from jopd.run import config as configs
from jopd.run import resolve
from jopd.run.response_sources import Rows
from jopd.train import filters, teacher_sync

ROLES = ('teacher', 'other')
VOCAB = 12
TOP_K = dict(name='top_k', k=3, of='student', tail='drop')
JSD = dict(name='generalized_jsd', beta=0.25)


def batch_of(key):
  """Two rows of three tokens, two teachers."""
  keys = jax.random.split(key, 4)
  logp = lambda k: losses.log_probs(jax.random.normal(k, (2, 3, VOCAB)))
  return losses.TokenBatch(
    student_logp=logp(keys[0]),
    logps=dict(zip(ROLES, map(logp, keys[1:3]), strict=True)),
    token=jax.random.randint(keys[3], (2, 3), 0, VOCAB),
    sampler_logp=jnp.full((2, 3), -1.5),
  )


HAND_MADE = [
  (dict(objective='negative_log_likelihood'), losses.negative_log_likelihood()),
  (
    dict(objective='divergence', divergence='reverse_kl'),
    losses.divergence(losses.reverse_kl),
  ),
  (
    dict(objective='divergence', divergence='forward_kl', support='full'),
    losses.divergence(losses.forward_kl),
  ),
  (
    dict(objective='divergence', divergence=JSD),
    losses.divergence(partial(losses.generalized_jsd, beta=0.25)),
  ),
  (
    dict(
      objective='divergence',
      divergence='stop_gradient_reverse_kl',
      support=TOP_K,
      target='teacher',
    ),
    losses.divergence(
      losses.stop_gradient_reverse_kl,
      support=partial(losses.top_k, k=3, of='student', tail='drop'),
    ),
  ),
  (
    dict(
      objective='kl_estimate',
      estimator='k2',
      target=dict(name='teacher', role='other'),
    ),
    losses.kl_estimate(losses.k2, target=partial(losses.teacher, role='other')),
  ),
  (
    dict(objective='kl_estimate', estimator='k3'),
    losses.kl_estimate(losses.k3),
  ),
  (
    dict(objective='policy_gradient', surrogate='reinforce'),
    losses.policy_gradient(losses.reinforce),
  ),
  (
    dict(
      objective='policy_gradient',
      surrogate=dict(name='ppo_clip', low=0.1, high=0.3),
      advantage='log_ratio',
      old_policy='sampler',
    ),
    losses.policy_gradient(
      partial(losses.ppo_clip, low=0.1, high=0.3),
      old_policy=losses.old_policies.sampler,
    ),
  ),
  (
    dict(
      objective='policy_gradient',
      surrogate='reinforce',
      advantage=dict(
        name='discounted_return',
        gamma=0.5,
        advantage=dict(name='clip', low=-1.0, advantage='centered_log_ratio'),
      ),
    ),
    losses.policy_gradient(
      losses.reinforce,
      advantage=partial(
        losses.discounted_return,
        gamma=0.5,
        advantage=partial(
          losses.clip, low=-1.0, advantage=losses.centered_log_ratio
        ),
      ),
    ),
  ),
  (
    dict(
      objective='divergence',
      divergence='forward_kl',
      target=dict(name='mixture', weights=dict(teacher=0.25, other=0.75)),
    ),
    losses.divergence(
      losses.forward_kl,
      target=partial(losses.mixture, weights={'teacher': 0.25, 'other': 0.75}),
    ),
  ),
]


@pytest.mark.parametrize(
  'spec, objective', HAND_MADE, ids=[str(spec) for spec, _ in HAND_MADE]
)
def test_a_resolved_term_is_the_hand_made_one(spec, objective, key):
  # Kills: an argument that is dropped on the way (beta, k, low, anchor), a name
  # that stays a name, the weights of a target taken for a term's weight.
  batch, mask = batch_of(key), jnp.array([[True, True, False], [True] * 3])
  make = resolve.make_terms({'a': spec | {'coef': 0.5}}, ROLES, VOCAB)

  def loss(student_logp, terms):
    changed = batch._replace(student_logp=student_logp)
    return losses.distill_loss(changed, terms, mask=mask, count=5)

  by_hand = {'a': losses.Term(objective, losses.uniform, 0.5)}
  grad = jax.grad(loss)
  np.testing.assert_array_equal(
    grad(batch.student_logp, make(0)), grad(batch.student_logp, by_hand)
  )
  assert float(loss(batch.student_logp, make(0))) == float(
    loss(batch.student_logp, by_hand)
  )


def test_settings_of_a_config_are_as_good_as_plain_ones(key):
  # Kills: isinstance(coef, Mapping) on a ConfigDict, which is none.
  spec = ConfigDict(HAND_MADE[4][0]).to_dict()
  coef = dict(schedule='linear_schedule', init_value=1.0, end_value=0.0)
  coef['transition_steps'] = 4
  stage = configs.stage(loss=dict(a=spec | dict(coef=coef)))
  make = resolve.make_terms(stage.loss.to_dict(), ROLES, VOCAB)
  assert float(make(1)['a'].coef) == 0.75


DIVERGENCES = [
  'alpha_divergence',
  'forward_kl',
  'generalized_forward_kl',
  'generalized_jsd',
  'generalized_reverse_kl',
  'reverse_kl',
  'skew_forward_kl',
  'skew_reverse_kl',
  'stop_gradient_reverse_kl',
  'total_variation',
]


def test_every_function_of_the_rooms_can_be_named():
  # Kills: a room whose functions are filtered away, or its helpers let in.
  names = {
    losses.divergences: ' '.join(DIVERGENCES),
    losses.supports: 'full top_k',
    losses.kl_estimators: 'k1 k2 k3',
    losses.surrogates: 'clipped reinforce',
    losses.old_policies: 'geometric sampler student',
    losses.advantages: ' '.join(losses.advantages.__all__),
    losses.targets: 'extrapolated log_linear mixture teacher',
    losses.weights: ' '.join(losses.weights.__all__),
    losses.aggregation: 'fixed_length sequence_mean token_mean',
    contexts: 'same with_answer with_attempt with_solution with_success'
    ' with_suggestion with_system with_template',
    filters: 'keep_all min_reward nonzero_reward_std not_truncated',
    teacher_sync: 'ema periodic',
  }
  for room, known in names.items():
    with pytest.raises(ValueError) as error:
      resolve.resolve(room, '-')
    assert str(error.value).endswith(
      f'choose from {", ".join(sorted(known.split()))}'
    )


def test_all_arguments_of_a_source_are_settings(tmp_path):
  # Kills: refusing `path`, which is positional, as no setting.
  path = tmp_path / 'rows.jsonl'
  path.write_text('{"question": "1 + 1?", "answer": 2}\n')
  spec = dict(name='jsonl', path=str(path), prompt_field='question')
  [example] = resolve.make_examples(ConfigDict(spec))
  assert example.messages == [{'role': 'user', 'content': '1 + 1?'}]
  assert example.answer == '2'


def test_a_context_is_bound_to_its_prompt():
  context = resolve.resolve(contexts, dict(name='with_system', prompt='Be.'))
  turns = context(Example('a', [{'role': 'user', 'content': 'x'}]))
  assert turns[0] == {'role': 'system', 'content': 'Be.'}


MATCH = dict(objective='divergence', divergence='reverse_kl')
POLICY = dict(objective='policy_gradient', surrogate='reinforce')


@pytest.mark.parametrize(
  'spec, part',
  [
    (MATCH | dict(objective='match'), "did you mean 'divergence'?"),
    (MATCH | dict(divergence='reverse_lk'), "did you mean 'reverse_kl'?"),
    (MATCH | dict(support='topk'), "did you mean 'top_k'?"),
    (MATCH | dict(support='top_k'), "top_k needs 'k'"),
    (MATCH | dict(support=dict(name='top_k', kk=3)), "did you mean 'k'?"),
    (MATCH | dict(support=dict(name='top_k', k=13)), 'k must be in [1, 12]'),
    (MATCH | dict(support=TOP_K | dict(tail='cut')), 'tail must be'),
    (MATCH | dict(estimator='k2'), "has no setting 'penalty'"),
    (MATCH | dict(weight='uniforn'), "did you mean 'uniform'?"),
    (MATCH | dict(coef='half'), 'expected a number or dict(schedule=...)'),
    (MATCH | dict(coef=dict(schedule='linear')), "no schedule 'linear'"),
    (
      MATCH | dict(coef=dict(schedule='linear_schedule')),
      "optax.linear_schedule needs 'init_value'",
    ),
    (dict(objective='divergence'), "a matching term needs 'divergence'"),
    (MATCH | dict(divergence=3), 'expected a name or dict(name=...), got 3'),
    (MATCH | dict(demonstrate=True), "did you mean 'demonstration'?"),
    (MATCH | dict(coeff=1.0), "did you mean 'coef'?"),
    (
      POLICY | dict(advantage=dict(name='clip', advantage='log_ratoi')),
      "credits has no 'log_ratoi'; did you mean 'log_ratio'?",
    ),
    (
      POLICY
      | dict(
        advantage=dict(name='clip', advantage=dict(name='discounted_return'))
      ),
      "credits.discounted needs 'gamma'",
    ),
    (MATCH | dict(target='mixture'), "targets.mixture needs 'weights'"),
    (
      MATCH | dict(target=dict(name='mixture', weights=dict(coach=1.0))),
      "expected a teacher named 'coach'",
    ),
    (
      MATCH
      | dict(
        target=dict(name='extrapolated', strength=1.4, limit=1.3, base='other')
      ),
      'strength 1.4 is beyond the cliff at 1.3',
    ),
    (
      MATCH | dict(weight=dict(name='top_informative', fraction=0)),
      'fraction must be in (0, 1], got 0',
    ),
    (dict(objective='kl_estimate', estimator='k4'), 'choose from k1, k2, k3'),
    (
      dict(objective='policy_gradient', surrogate='clip', old_policy='x'),
      "did you mean 'ppo_clip'?",
    ),
    (
      dict(objective='policy_gradient', surrogate='reinforce', old_policy='x'),
      "anchors has no 'x'; choose from geometric, sampler, student",
    ),
  ],
  ids=str,
)
def test_a_wrong_term_is_refused_by_name_before_any_step(spec, part):
  # Kills: waiting for the first step to find k beyond the vocabulary.
  with pytest.raises(ValueError) as error:
    resolve.make_terms({'a': MATCH, 'b': spec}, ROLES, VOCAB)
  assert str(error.value).startswith('terms.b: ') and part in str(error.value)


def top_k(**settings):
  return dict(name='top_k', **settings)


def kl_as_advantage(stats):
  """A credit of somebody's own: no list of names holds it."""
  return -stats.reverse_kl


# A term, why it is refused, and what cures it.
GUARD_RAILS = [
  (
    POLICY | dict(advantage='kl_as_advantage'),
    'it teaches nothing: its credit is the same for every token at its place,'
    ' as a KL is, and so its expected gradient is zero; match that divergence',
    MATCH | dict(support=top_k(k=2)),
  ),
  (
    MATCH | dict(support=top_k(k=1, tail='renormalize')),
    'it teaches nothing: its gradient is zero whatever the teacher says, as'
    ' where one category alone is renormalised (raise k,',
    MATCH | dict(support=top_k(k=2, tail='renormalize')),
  ),
  (
    MATCH | dict(target=dict(name='log_linear', weights=dict(student=1.0))),
    'and where the target is the student itself',
    MATCH | dict(target=dict(name='log_linear', weights=dict(other=1.0))),
  ),
  (
    dict(objective='kl_estimate', estimator='k1'),
    'it teaches nothing: the expected gradient of its penalty is zero, as that'
    ' of the log-ratio, which does not contain the teacher; use k2, or',
    dict(objective='kl_estimate', estimator='k2'),
  ),
  (
    MATCH | dict(support=TOP_K),
    'it moves a student that equals its target: a sum over part of the'
    ' vocabulary pushes mass out of its support, or into it; use'
    " stop_gradient_reverse_kl or tail='bucket', or set demonstration=True",
    MATCH | dict(support=TOP_K, divergence='stop_gradient_reverse_kl'),
  ),
  (
    MATCH | dict(support=TOP_K, divergence='forward_kl'),
    'pushes mass out of its support, or into it',
    MATCH | dict(support=TOP_K, divergence='generalized_forward_kl'),
  ),
  (
    MATCH | dict(support=top_k(k=70, of='union', tail='drop')),
    'pushes mass out of its support, or into it',
    MATCH | dict(support=top_k(k=70, of='union', tail='bucket')),
  ),
]


@pytest.mark.parametrize('spec, reason, cure', GUARD_RAILS)
def test_a_loss_that_teaches_nothing_or_the_wrong_thing_is_refused(
  spec, reason, cure, monkeypatch
):
  # Kills: a list of names, a k that covers the probe's small vocabulary, and a
  # guard that stops what is sound.
  kl_as_advantage.__module__ = losses.advantages.__name__
  monkeypatch.setattr(
    losses.advantages, 'kl_as_advantage', kl_as_advantage, raising=False
  )
  with pytest.raises(ValueError) as error:
    resolve.make_terms({'a': MATCH, 'b': spec}, ROLES, 300)
  assert str(error.value).startswith('terms.b: ')
  assert reason in str(error.value)
  resolve.make_terms({'b': cure}, ROLES, 300)


def test_a_demonstration_may_go_wrong_but_must_teach():
  # Kills: a switch that turns off both guards, or that reaches the loss.
  spec = MATCH | dict(support=TOP_K, demonstration=True)
  term = resolve.make_terms({'a': spec}, ROLES, VOCAB)(0)['a']
  assert term.coef == 1.0
  spec = MATCH | dict(support=TOP_K | dict(k=1, tail='renormalize'))
  with pytest.raises(ValueError, match='teaches nothing'):
    resolve.make_terms({'a': spec | dict(demonstration=True)}, ROLES, VOCAB)


def test_all_of_the_vocabulary_is_no_truncation():
  # Kills: a probe in which a support of everything leaves something out, and
  # one in which nearly everything leaves nothing out.
  spec = lambda k: {'a': MATCH | dict(support=TOP_K | dict(k=k))}
  resolve.make_terms(spec(300), ROLES, 300)
  with pytest.raises(ValueError, match='pushes mass out'):
    resolve.make_terms(spec(299), ROLES, 300)


SOUND = [
  *[MATCH | dict(divergence=divergence) for divergence in DIVERGENCES],
  # Those that stay put on a truncated sum: f'(1) = 0, or a kink there.
  *[
    MATCH | dict(divergence=divergence, support=TOP_K)
    for divergence in DIVERGENCES
    if divergence.startswith(('alpha', 'general', 'stop', 'total'))
  ],
  MATCH | dict(support=top_k(k=1, of='intersection', tail='bucket')),
  MATCH | dict(support=top_k(k=2, of='union', tail='renormalize')),
  *[
    dict(objective='kl_estimate', estimator=penalty, target=target)
    for penalty in ('k2', 'k3')
    for target in (
      dict(name='teacher', role='other'),
      dict(name='mixture', weights=dict(teacher=0.5, other=0.5)),
      dict(name='log_linear', weights=dict(teacher=1.25, other=-0.25)),
    )
  ],
  *[
    POLICY | dict(advantage=credit)
    for credit in (
      'log_ratio',
      'centered_log_ratio',
      dict(name='discounted_return', gamma=0.9, advantage='centered_log_ratio'),
      dict(name='clip', low=-5.0, high=5.0),
      'reward',
      'group_advantage',
      dict(name='group_advantage', scale='none'),
      dict(name='clip', low=-2.0, advantage='group_advantage'),
    )
  ],
  POLICY | dict(surrogate='ppo_clip', old_policy='sampler'),
  POLICY
  | dict(
    advantage='group_advantage', old_policy=dict(name='geometric', sampler=0.5)
  ),
  *[
    MATCH | dict(weight=weight)
    for weight in (
      dict(name='gate', of='student_entropy', low=0.5),
      dict(name='top_fraction', of='reverse_kl', fraction=0.2),
      dict(name='importance', high=2.0),
      dict(name='gate', of='reward', low=0.5),
      dict(name='group_softmax', of='target_logp', rows='wrong'),
      'best_row',
    )
  ],
  dict(objective='preference', beta=0.1, by='reward'),
  dict(objective='negative_log_likelihood'),
]


@pytest.mark.parametrize('spec', SOUND, ids=str)
def test_every_function_is_accepted_in_its_sound_form(spec):
  # Kills: a guard with a tolerance that rounding exceeds, one that trips over
  # a kink, and one that judges imitation.
  resolve.make_terms({'a': spec}, ROLES, 300, rows=Rows([['student'] * 8]))


def test_a_target_without_its_teacher_is_refused():
  # Kills: finding out when the learner compiles.
  with pytest.raises(ValueError, match=r"terms\.a: .*'teacher'.*'coach'"):
    resolve.make_terms({'a': MATCH}, ('coach',), VOCAB)
  target = dict(name='teacher', role='coach')
  resolve.make_terms({'a': MATCH | dict(target=target)}, ('coach',), VOCAB)


def test_a_scheduled_coefficient_follows_the_step_without_a_retrace():
  # Kills: a step that is read as a Python number.
  traces = itertools.count()
  coef = dict(schedule='linear_schedule', init_value=2.0, end_value=0.0)
  spec = MATCH | dict(coef=coef | dict(transition_steps=4))
  make = resolve.make_terms({'a': spec}, ROLES, VOCAB)

  @jax.jit
  def coefficient(step):
    next(traces)
    return make(step)['a'].coef

  steps = [jnp.int32(step) for step in (0, 1, 4, 9)]
  assert [float(coefficient(step)) for step in steps] == [2.0, 1.5, 0.0, 0.0]
  assert next(traces) == 1


def test_reductions_count_what_they_divide_by():
  # Five tokens in two rows of which one is empty.
  # Kills: a sequence mean that counts the empty row.
  mask = jnp.array([[True] * 5, [False] * 5])
  fixed = dict(name='fixed_length', length=10)
  for spec, count in (('token_mean', 5), ('sequence_mean', 1), (fixed, 1)):
    assert int(resolve.make_reduction(spec).count(mask)) == count


def test_a_reduction_of_a_stage_may_have_settings():
  # Kills: a default that is a name and insists on one, a length that is lost.
  stage = configs.stage(loss_aggregation=dict(name='fixed_length', length=10))
  reduction = resolve.make_reduction(stage.loss_aggregation)
  ones, mask = jnp.ones((2, 5)), jnp.ones((2, 5), bool)
  assert float(reduction.reduce(ones, mask, reduction.count(mask))) == 0.5
  assert configs.stage().reduce == 'token_mean'
  assert (
    configs.stage(loss_aggregation='sequence_mean').reduce == 'sequence_mean'
  )


@pytest.mark.parametrize(
  'spec, part',
  [
    ('token_men', "has no 'token_men'; did you mean 'token_mean'?"),
    ('fixed_length', "fixed_length needs 'length'"),
    (dict(name='fixed_length', lenght=3), "did you mean 'length'?"),
    (dict(name='fixed_length', length=0), 'length must be above 0, got 0'),
    (dict(name='fixed_length', length=-1), 'length must be above 0, got -1'),
  ],
)
def test_a_wrong_reduction_is_refused(spec, part):
  # Kills: finding a length of 0 when the learner compiles.
  with pytest.raises(ValueError) as error:
    resolve.make_reduction(spec)
  assert str(error.value).startswith('reduce: ') and part in str(error.value)


# Kills: importance weights that are left out where responses are older.
def test_several_updates_need_the_sampler_as_anchor():
  pg = dict(objective='policy_gradient', surrogate='reinforce')
  roles = ['teacher']
  make = lambda spec, n: resolve.make_terms({'a': spec}, roles, 8, updates=n)
  make(pg, 1)
  make(pg | {'anchor': 'sampler'}, 2)
  make(dict(objective='divergence', divergence='reverse_kl'), 2)
  with pytest.raises(ValueError, match="anchor='sampler'"):
    make(pg, 2)


# A quantile over each of two halves is not one over the whole. Kills a weight
# that means something else when memory is short; a row is never cut.
def test_what_looks_at_the_whole_batch_is_not_cut_into_micro_batches():
  far = dict(name='top_fraction', of='student_entropy', fraction=0.5)
  match = dict(objective='divergence', divergence='reverse_kl')
  to_come = dict(
    objective='policy_gradient',
    surrogate='reinforce',
    advantage=dict(name='discounted_return', gamma=0.5),
  )
  with pytest.raises(ValueError, match=r'terms\.a: .*2 micro_batches cut up'):
    resolve.make_terms(
      {'a': match | {'weight': far}}, ['teacher'], 8, micro_batches=2
    )
  resolve.make_terms({'a': match | {'weight': far}}, ['teacher'], 8)
  resolve.make_terms({'a': to_come}, ['teacher'], 8, micro_batches=2)


GRPO = POLICY | dict(advantage='group_advantage')


def either(stats):
  """A credit of somebody's own that can do without rewards."""
  if stats.reward is None:
    return stats.target_logp - stats.student_logp
  return stats.reward


# Found by leaving the rewards out. Kills a list of names, and a weight that is
# overlooked.
def test_who_reads_rewards_is_found_out(monkeypatch):
  either.__module__ = losses.advantages.__name__
  monkeypatch.setattr(losses.advantages, 'either', either, raising=False)
  routed = MATCH | dict(weight=dict(name='gate', of='reward', high=0.5))
  nested = POLICY | dict(advantage=dict(name='clip', advantage='reward'))
  for spec, reads in [
    (MATCH, False),
    (POLICY, False),
    (POLICY | dict(advantage='either'), False),
    (GRPO, True),
    (routed, True),
    (nested, True),
  ]:
    assert resolve.reads_rewards({'a': spec}, ROLES, VOCAB) is reads
    both = {'m': MATCH, 'a': spec}
    assert resolve.reads_rewards(both, ROLES, VOCAB) is reads
  assert resolve.reads_rewards({'a': GRPO}, (), VOCAB)


# Kills an advantage that is 0 at every step of a run.
def test_a_group_of_one_has_no_advantage():
  with pytest.raises(ValueError, match=r'terms\.a: .*with group_size 1 a resp'):
    resolve.make_terms({'a': GRPO}, (), VOCAB)
  with pytest.raises(ValueError, match=r"terms\.a: scale must be 'std' or"):
    credit = dict(name='group_advantage', scale='var')
    resolve.make_terms({'a': GRPO | dict(advantage=credit)}, (), VOCAB)
  resolve.make_terms({'a': GRPO}, (), VOCAB, rows=Rows([['student'] * 2]))
  resolve.make_terms({'a': POLICY | dict(advantage='reward')}, (), VOCAB)
