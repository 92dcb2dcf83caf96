"""The section `loss` becomes terms, once; what no step could use is refused."""

from functools import partial
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jopd import losses
from jopd.run import config as configs
from jopd.run.config import ConfigError
from jopd.run.loss import check_term, make_aggregation, make_loss, read_terms
from jopd.run.sources import make_sources

ROLES = ('teacher', 'other')
VOCAB = 12
TOP_K = dict(name='top_k', k=3, of='student', tail='drop')
MATCH = dict(objective='divergence', divergence='reverse_kl')
POLICY = dict(objective='policy_gradient', surrogate='reinforce')
GRPO = POLICY | dict(advantage='group_advantage')
RAMP = dict(schedule='linear_schedule', init_value=0.0, transition_steps=4)


def ramp(end=1.0, **settings):
  return RAMP | dict(end_value=end) | settings


def make(
  *specs, vocab=VOCAB, roles=ROLES, controlled=(), off_policy='', **stage
):
  """The loss of a stage with these terms, called 'a', 'b', ..."""
  stage = dict(steps=5, group_size=2) | stage
  settings = configs.stage(
    loss=dict(zip('abc', specs, strict=False)),
    teachers={role: 'teacher' for role in roles},
    **stage,
  )
  return make_loss(
    settings,
    vocab_size=vocab,
    sources=make_sources(settings),
    controlled=dict(controlled),
    off_policy=off_policy,
  )


def refused(*specs, **settings):
  with pytest.raises(ConfigError) as error:
    make(*specs, **settings)
  assert '\n' not in str(error.value)
  return str(error.value)


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


def half_of(stats, *, factor=1.0):
  """A weight of a user's own, which does not declare what it reads."""
  return factor * jnp.full_like(stats.student_logp, 0.5)


def imitate(batch):
  """An objective of a user's own."""
  return -losses.token_logp(batch.student_logp, batch.token)


BY_HAND = [
  (dict(objective='negative_log_likelihood'), losses.negative_log_likelihood()),
  (MATCH, losses.divergence(losses.reverse_kl)),
  (
    MATCH | dict(divergence=dict(name='generalized_jsd', beta=0.25)),
    losses.divergence(partial(losses.generalized_jsd, beta=0.25)),
  ),
  (
    MATCH | dict(divergence='stop_gradient_reverse_kl', support=TOP_K),
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
    POLICY
    | dict(
      surrogate=dict(name='ppo_clip', low=0.1, high=0.3), old_policy='sampler'
    ),
    losses.policy_gradient(
      partial(losses.ppo_clip, low=0.1, high=0.3),
      old_policy=losses.old_policies.sampler,
    ),
  ),
  (
    MATCH
    | dict(
      divergence='forward_kl',
      target=dict(name='mixture', weights=dict(teacher=0.25, other=0.75)),
    ),
    losses.divergence(
      losses.forward_kl,
      target=partial(losses.mixture, weights={'teacher': 0.25, 'other': 0.75}),
    ),
  ),
  (dict(objective=imitate), losses.negative_log_likelihood()),
]


@pytest.mark.parametrize('spec, objective', BY_HAND)
def test_a_term_of_a_config_is_the_one_made_by_hand(spec, objective, key):
  # Kills: an argument that is dropped on the way (beta, k, low, old_policy), a
  # name that stays a name, weights of a target taken for a term's weight.
  batch, mask = batch_of(key), jnp.array([[True, True, False], [True] * 3])
  terms = make(spec | {'coef': 0.5}).terms({})
  by_hand = {'a': losses.Term(objective, losses.uniform, 0.5)}

  def loss(student_logp, terms):
    changed = batch._replace(student_logp=student_logp)
    return losses.distill_loss(changed, terms, mask=mask, count=5)

  value, grad = jax.value_and_grad(loss)(batch.student_logp, terms)
  expected = jax.value_and_grad(loss)(batch.student_logp, by_hand)
  assert float(value) == float(expected[0])
  np.testing.assert_array_equal(grad, expected[1])


@pytest.mark.parametrize(
  'spec, part',
  [
    (MATCH | dict(objective='divergenc'), "did you mean 'divergence'?"),
    (MATCH | dict(divergence='reverse_lk'), "did you mean 'reverse_kl'?"),
    (MATCH | dict(support=dict(name='top_k', k=13)), 'k must be in [1, 12]'),
    (MATCH | dict(support=TOP_K | dict(tail='cut')), 'tail must be'),
    (MATCH | dict(estimator='k2'), "has no setting 'estimator'"),
    (MATCH | dict(credit='reward'), "has no setting 'credit'"),
    (MATCH | dict(coef='half'), 'coef must be a number'),
    (dict(objective='divergence'), "needs 'divergence'"),
    (dict(divergence='reverse_kl'), "a term needs 'objective'"),
    (MATCH | dict(coeff=1.0), "did you mean 'coef'?"),
    (
      MATCH | dict(target=dict(name='mixture', weights=dict(coach=1.0))),
      "expected a teacher named 'coach'",
    ),
    (
      MATCH | dict(target=dict(name='teacher', role='coach')),
      "expected a teacher named 'coach'",
    ),
    (
      MATCH | dict(weight=dict(name='top_fraction', of='overlap', fraction=0)),
      'fraction must be in (0, 1], got 0',
    ),
    (dict(objective='kl_estimate', estimator='k4'), 'choose from k1, k2, k3'),
    (GRPO | dict(advantage=dict(name='group_advantage', scale='var')), 'scale'),
  ],
)
def test_a_wrong_term_is_refused_by_name_before_any_step(spec, part):
  # Kills: waiting for the first step to find k beyond the vocabulary.
  message = refused(MATCH, spec)
  assert message.startswith('loss.b: ') and part in message


def test_scheduled_settings_follow_the_update_without_a_retrace(key):
  # gamma 0, 1/2, 1 at updates 0, 2, 4: the loss of each is that of the number.
  # Kills: a value frozen at the first step, and a trace for each step.
  discounted = lambda gamma: dict(name='discounted_return', gamma=gamma)
  gate = lambda low: dict(name='gate', of='log_ratio', low=low)
  spec = lambda x: POLICY | dict(advantage=discounted(x), weight=gate(x))
  batch, mask = batch_of(key), jnp.ones((2, 3), bool)
  loss, traces = make(spec(ramp()) | dict(coef=ramp(2.0))), itertools.count()
  assert loss.scalars(2, {}) == {
    'a.coef': 1.0,
    'a.advantage.gamma': 0.5,
    'a.weight.low': 0.5,
  }

  @jax.jit
  def value(scalars):
    next(traces)
    return losses.distill_loss(batch, loss.terms(scalars), mask=mask, count=6)

  for update, x in ((0, 0.0), (2, 0.5), (4, 1.0)):
    fixed = make(spec(x) | dict(coef=2 * x)).terms({})
    expected = losses.distill_loss(batch, fixed, mask=mask, count=6)
    result = value(loss.scalars(update, {}))
    np.testing.assert_allclose(result, expected, rtol=1e-6)
  assert next(traces) == 1


def test_a_controlled_setting_is_what_a_callback_says():
  # Kills: the first value of a callback that stays for the whole stage.
  spec = MATCH | dict(coef=dict(controlled='pull'))
  loss = make(spec, controlled={'pull': 2.0})
  assert loss.scalars(3, {'pull': 0.25}) == {'a.coef': 0.25}
  assert "no callback controls 'pull'" in refused(spec)


def test_a_schedule_that_leaves_its_range_is_refused():
  # Kills a check of where a schedule begins only, and one of where it would be
  # after the last step.
  spec = POLICY | dict(
    advantage=dict(name='discounted_return', gamma=ramp(end=2.0))
  )
  make(spec, steps=3)
  assert 'gamma must be in' in refused(spec, steps=5)


def test_a_schedule_of_what_decides_a_shape_is_refused():
  # Kills an error of the tracer, and waiting for the first step.
  k = ramp(end=4.0, init_value=2.0)
  message = refused(MATCH | dict(support=dict(name='top_k', k=k)))
  assert 'a.support.k' in message


# Kills: an undeclared function that is refused, one that is taken to read
# nothing, and a nested one that is overlooked.
@pytest.mark.parametrize(
  'spec, reward',
  [
    (MATCH, False),
    (POLICY, False),
    (GRPO, True),
    (MATCH | dict(weight=dict(name='gate', of='reward', high=0.5)), True),
    (POLICY | dict(advantage=dict(name='clip', advantage='reward')), True),
    (MATCH | dict(weight=half_of), True),
    (MATCH | dict(weight=losses.reads('token')(lambda stats: 1.0)), False),
  ],
)
def test_what_a_loss_reads_is_what_its_functions_declare(spec, reward):
  assert make(MATCH, spec).reads.reward is reward


def test_what_reads_the_whole_batch_is_not_divided():
  # A quantile over each of two halves is not one over the whole.
  far = dict(name='top_fraction', of='student_entropy', fraction=0.5)
  to_come = POLICY | dict(advantage=dict(name='discounted_return', gamma=0.5))
  make(MATCH | {'weight': far})
  make(to_come, gradient_accumulation_steps=2)
  message = refused(MATCH | {'weight': far}, gradient_accumulation_steps=2)
  assert 'set gradient_accumulation_steps=1' in message
  message = refused(MATCH | {'weight': half_of}, gradient_accumulation_steps=2)
  assert 'half_of does not declare what it reads' in message
  assert "jopd.losses.reads('token')" in message


def test_responses_of_another_policy_need_the_sampler():
  # Kills: importance weights that are left out where responses are older.
  make(POLICY, num_minibatches=1)
  make(POLICY | dict(old_policy='sampler'), num_minibatches=2)
  make(MATCH, num_minibatches=2)
  assert "set old_policy='sampler'" in refused(POLICY, num_minibatches=2)
  message = refused(POLICY, off_policy='responses are of an older student')
  assert message.startswith('loss.a: responses are of an older student: set')


def test_a_group_of_one_has_no_advantage():
  # Kills: an advantage that is 0 at every step of a run.
  assert 'set group_size to 2' in refused(GRPO, roles=(), group_size=1)
  make(GRPO, roles=())
  make(POLICY | dict(advantage='reward'), roles=(), group_size=1)


def kl_as_advantage(stats):
  """An advantage of a user's own: the same for every token at its place."""
  return -stats.reverse_kl


def toward_nothing(student_logp, target_logp):
  """A divergence of a user's own that pushes mass into its support."""
  return -jnp.sum(jnp.exp(student_logp), axis=-1)


def test_a_users_function_is_checked_before_the_run():
  # Kills: a guard that judges functions of jopd alone.
  message = refused(MATCH, POLICY | dict(advantage=kl_as_advantage))
  assert message.startswith('loss.b: ') and 'it has no gradient' in message
  make(MATCH | dict(weight=half_of))


TEACHES_NOTHING = [
  MATCH | dict(support=dict(name='top_k', k=1, tail='renormalize')),
  MATCH | dict(target=dict(name='log_linear', weights=dict(student=1.0))),
  dict(objective='kl_estimate', estimator='k1'),
]
MOVES = [
  MATCH | dict(support=TOP_K),
  MATCH | dict(support=TOP_K, divergence='forward_kl'),
  MATCH | dict(support=dict(name='top_k', k=70, of='union', tail='drop')),
]
SOUND = [
  MATCH | dict(support=TOP_K, divergence='stop_gradient_reverse_kl'),
  MATCH | dict(support=dict(name='top_k', k=1, tail='bucket')),
  MATCH | dict(support=TOP_K | dict(k=300)),
  dict(objective='kl_estimate', estimator='k2'),
  GRPO,
]


def check(spec, demonstration=False):
  settings = configs.stage(group_size=2, teachers=dict(teacher='t'))
  settings.loss = dict(a=spec | dict(demonstration=demonstration))
  [term] = read_terms(settings.loss.to_dict(), make_sources(settings)).values()
  check_term(term, {}, ('teacher', 'other'), 2, 300)


# Kills: a k that covers the small vocabulary of the check, a tolerance that
# rounding exceeds, and a switch that turns off both guards.
@pytest.mark.parametrize('spec', [*TEACHES_NOTHING, *MOVES])
def test_the_check_finds_what_teaches_nothing_or_the_wrong_thing(spec):
  with pytest.raises(ValueError) as error:
    check(spec)
  moves = spec in MOVES
  assert ('equals its target' in str(error.value)) is moves
  if moves:
    check(spec, demonstration=True)
  else:
    with pytest.raises(ValueError):
      check(spec, demonstration=True)


@pytest.mark.parametrize('spec', SOUND)
def test_the_check_accepts_what_is_sound(spec):
  check(spec)


def test_an_aggregation_counts_what_it_divides_by():
  # Five tokens in two rows of which one is empty. Kills: a sequence mean that
  # counts the empty row, and a function of one's own that is given no count.
  mask = jnp.array([[True] * 5, [False] * 5])
  fixed = dict(name='fixed_length', length=10)
  own = lambda per_token, mask, count: jnp.sum(per_token) / count
  for spec, count in (
    ('token_mean', 5),
    ('sequence_mean', 1),
    (fixed, 1),
    (own, 5),
  ):
    assert int(make_aggregation(spec).count(mask)) == count


@pytest.mark.parametrize(
  'spec, part',
  [
    ('token_men', "did you mean 'token_mean'?"),
    ('fixed_length', "fixed_length needs 'length'"),
    (dict(name='fixed_length', lenght=3), "did you mean 'length'?"),
    (dict(name='fixed_length', length=0), 'length must be above 0, got 0'),
  ],
)
def test_a_wrong_aggregation_is_refused(spec, part):
  # Kills: finding a length of 0 when the learner compiles.
  with pytest.raises(ConfigError) as error:
    make_aggregation(spec)
  assert str(error.value).startswith('loss_aggregation: ')
  assert part in str(error.value)
