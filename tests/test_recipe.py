"""Names become the functions they name, with their arguments, or one line."""

from functools import partial
import itertools
import math

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import pytest

from jopd import config as configs
from jopd import losses, recipe
from jopd.data import contexts
from jopd.data.examples import Example

ROLES = ('teacher', 'other')
VOCAB = 12
TOP_K = dict(name='top_k', k=3, of='student', tail='drop')
JSD = dict(name='generalized_jsd', beta=0.25)


def batch_of(key):
  """Two rows of three tokens, two teachers."""
  keys = jax.random.split(key, 4)
  logp = lambda k: losses.log_probs(jax.random.normal(k, (2, 3, VOCAB)))
  return losses.TokenBatch(
    logp(keys[0]),
    dict(zip(ROLES, map(logp, keys[1:3]), strict=True)),
    jax.random.randint(keys[3], (2, 3), 0, VOCAB),
    jnp.full((2, 3), -1.5),
  )


HAND_MADE = [
  (dict(objective='negative_log_likelihood'), losses.negative_log_likelihood()),
  (
    dict(objective='matching', divergence='reverse_kl'),
    losses.matching(losses.reverse_kl),
  ),
  (
    dict(objective='matching', divergence='forward_kl', support='full'),
    losses.matching(losses.forward_kl),
  ),
  (
    dict(objective='matching', divergence=JSD),
    losses.matching(partial(losses.generalized_jsd, beta=0.25)),
  ),
  (
    dict(
      objective='matching',
      divergence='stop_gradient_reverse_kl',
      support=TOP_K,
      target='teacher',
    ),
    losses.matching(
      losses.stop_gradient_reverse_kl,
      support=partial(losses.top_k, k=3, of='student', tail='drop'),
    ),
  ),
  (
    dict(
      objective='sampled',
      penalty='k2',
      target=dict(name='teacher', role='other'),
    ),
    losses.sampled(losses.k2, target=partial(losses.teacher, role='other')),
  ),
  (dict(objective='sampled', penalty='k3'), losses.sampled(losses.k3)),
  (
    dict(objective='policy_gradient', surrogate='reinforce'),
    losses.policy_gradient(losses.reinforce),
  ),
  (
    dict(
      objective='policy_gradient',
      surrogate=dict(name='clipped', low=0.1, high=0.3),
      credit='log_ratio',
      anchor='sampler',
    ),
    losses.policy_gradient(
      partial(losses.clipped, low=0.1, high=0.3), anchor='sampler'
    ),
  ),
]


@pytest.mark.parametrize('spec, objective', HAND_MADE, ids=str)
def test_a_resolved_term_is_the_hand_made_one(spec, objective, key):
  # Kills: an argument that is dropped on the way (beta, k, low, anchor).
  batch, mask = batch_of(key), jnp.array([[True, True, False], [True] * 3])
  make = recipe.make_terms({'a': spec | {'coef': 0.5}}, ROLES, VOCAB)

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
  stage = configs.stage(terms=dict(a=spec | dict(coef=coef)))
  make = recipe.make_terms(stage.terms.to_dict(), ROLES, VOCAB)
  assert float(make(1)['a'].coef) == 0.75


def test_every_function_of_the_rooms_can_be_named():
  # Kills: a room whose functions are filtered away, or its helpers let in.
  names = {
    losses.divergences: 'forward_kl generalized_jsd reverse_kl '
    'stop_gradient_reverse_kl',
    losses.supports: 'full top_k',
    losses.penalties: 'k2 k3',
    losses.surrogates: 'clipped reinforce',
    losses.credits: 'log_ratio',
    losses.targets: 'teacher',
    losses.weights: 'uniform',
    contexts: 'same with_system',
  }
  for room, known in names.items():
    with pytest.raises(ValueError) as error:
      recipe.resolve(room, '-')
    assert str(error.value).endswith(
      f'choose from {", ".join(sorted(known.split()))}'
    )


def test_all_arguments_of_a_source_are_settings(tmp_path):
  # Kills: refusing `path`, which is positional, as no setting.
  path = tmp_path / 'rows.jsonl'
  path.write_text('{"question": "1 + 1?", "answer": 2}\n')
  spec = dict(name='jsonl', path=str(path), prompt_field='question')
  [example] = recipe.make_examples(ConfigDict(spec))
  assert example.messages == [{'role': 'user', 'content': '1 + 1?'}]
  assert example.answer == '2'


def test_a_context_is_bound_to_its_prompt():
  context = recipe.resolve(contexts, dict(name='with_system', prompt='Be.'))
  turns = context(Example('a', [{'role': 'user', 'content': 'x'}]))
  assert turns[0] == {'role': 'system', 'content': 'Be.'}


MATCH = dict(objective='matching', divergence='reverse_kl')


@pytest.mark.parametrize(
  'spec, part',
  [
    (MATCH | dict(objective='match'), "did you mean 'matching'?"),
    (MATCH | dict(divergence='reverse_lk'), "did you mean 'reverse_kl'?"),
    (MATCH | dict(support='topk'), "did you mean 'top_k'?"),
    (MATCH | dict(support='top_k'), "top_k needs 'k'"),
    (MATCH | dict(support=dict(name='top_k', kk=3)), "did you mean 'k'?"),
    (MATCH | dict(support=dict(name='top_k', k=13)), 'k must be in [1, 12]'),
    (MATCH | dict(support=TOP_K | dict(tail='cut')), 'tail must be'),
    (MATCH | dict(penalty='k2'), "has no setting 'penalty'"),
    (MATCH | dict(weight='uniforn'), "did you mean 'uniform'?"),
    (MATCH | dict(coef='half'), 'expected a number or dict(schedule=...)'),
    (MATCH | dict(coef=dict(schedule='linear')), "no schedule 'linear'"),
    (
      MATCH | dict(coef=dict(schedule='linear_schedule')),
      "optax.linear_schedule needs 'init_value'",
    ),
    (dict(objective='matching'), "a matching term needs 'divergence'"),
    (dict(objective='sampled', penalty='k4'), 'choose from k2, k3'),
    (
      dict(objective='policy_gradient', surrogate='clip', anchor='x'),
      "did you mean 'clipped'?",
    ),
    (
      dict(objective='policy_gradient', surrogate='reinforce', anchor='x'),
      "anchor must be 'student' or 'sampler'",
    ),
  ],
  ids=str,
)
def test_a_wrong_term_is_refused_by_name_before_any_step(spec, part):
  # Kills: waiting for the first step to find k beyond the vocabulary.
  with pytest.raises(ValueError) as error:
    recipe.make_terms({'a': MATCH, 'b': spec}, ROLES, VOCAB)
  assert str(error.value).startswith('terms.b: ') and part in str(error.value)


def test_a_target_without_its_teacher_is_refused():
  # Kills: finding out when the learner compiles.
  with pytest.raises(ValueError, match=r"terms\.a: .*'teacher'.*'coach'"):
    recipe.make_terms({'a': MATCH}, ('coach',), VOCAB)
  target = dict(name='teacher', role='coach')
  recipe.make_terms({'a': MATCH | dict(target=target)}, ('coach',), VOCAB)


def test_a_scheduled_coefficient_follows_the_step_without_a_retrace():
  # Kills: a step that is read as a Python number.
  traces = itertools.count()
  coef = dict(schedule='linear_schedule', init_value=2.0, end_value=0.0)
  spec = MATCH | dict(coef=coef | dict(transition_steps=4))
  make = recipe.make_terms({'a': spec}, ROLES, VOCAB)

  @jax.jit
  def coefficient(step):
    next(traces)
    return make(step)['a'].coef

  steps = [jnp.int32(step) for step in (0, 1, 4, 9)]
  assert [float(coefficient(step)) for step in steps] == [2.0, 1.5, 0.0, 0.0]
  assert next(traces) == 1


def settings(**changed):
  return configs.stage(learning_rate=0.4, steps=11, **changed)


@pytest.mark.parametrize(
  'decay, after',
  [
    # 8 steps are left after 3 of warm-up; 4 of them are half of the way.
    ('constant', {7: 0.4, 11: 0.4}),
    ('linear', {5: 0.3, 7: 0.2, 11: 0.0}),
    ('cosine', {5: 0.2 * (1 + math.cos(math.pi / 4)), 7: 0.2, 11: 0.0}),
  ],
)
def test_learning_rate_by_hand(decay, after):
  # Warm-up: 0.4 * (t + 1) / 4. Kills: a first step at rate 0, and a decay that
  # counts the steps of the warm-up.
  _, rate = recipe.make_optimizer(settings(decay=decay, warmup_steps=3))
  expected = {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.4} | after
  for step, value in expected.items():
    assert float(rate(step)) == pytest.approx(value, abs=1e-6)


def test_without_warmup_the_first_step_has_the_whole_rate():
  _, rate = recipe.make_optimizer(settings())
  assert float(rate(0)) == pytest.approx(0.4)


def update(config, gradient):
  tx, _ = recipe.make_optimizer(config)
  gradient = jnp.asarray(gradient)
  return tx.update(gradient, tx.init(gradient), gradient)[0]


def test_clipping_scales_a_long_gradient_and_leaves_a_short_one():
  # |(3, 4)| = 5 is scaled to 2; sgd multiplies by -0.4.
  # Kills: clipping each element, and clipping after the learning rate.
  sgd = dict(optimizer=dict(name='sgd'))
  clipped = update(settings(clip_norm=2.0, **sgd), [3.0, 4.0])
  np.testing.assert_allclose(clipped, [-0.48, -0.64], rtol=1e-6)
  short = update(settings(clip_norm=6.0, **sgd), [3.0, 4.0])
  np.testing.assert_allclose(short, [-1.2, -1.6], rtol=1e-6)
  free = update(settings(clip_norm=0.0, **sgd), [3.0, 4.0])
  np.testing.assert_allclose(free, [-1.2, -1.6], rtol=1e-6)


def test_arguments_reach_the_optimizer():
  # Two steps of momentum 0.5 on a gradient of 1: 1 and 1.5 times -0.4.
  # Kills: arguments that are checked, then forgotten.
  config = settings(optimizer=dict(name='sgd', momentum=0.5), clip_norm=0.0)
  tx, _ = recipe.make_optimizer(config)
  one = jnp.ones(1)
  _, state = tx.update(one, tx.init(one))
  second, _ = tx.update(one, state)
  np.testing.assert_allclose(second, [-0.6], rtol=1e-6)


@pytest.mark.parametrize(
  'changed, part',
  [
    (dict(optimizer=dict(name='adamv')), "no optimizer 'adamv'; did you mean"),
    (dict(optimizer=dict(b2=0.9)), "no optimizer ''; choose from adabelief"),
    (
      dict(optimizer=dict(name='adam', weight_dekay=1)),
      "optax.adam has no setting 'weight_dekay'",
    ),
    (
      dict(optimizer=dict(name='sgd', learning_rate=1)),
      "optax.sgd has no setting 'learning_rate'",
    ),
    (dict(decay='cosin'), "did you mean 'cosine'?"),
  ],
)
def test_a_wrong_optimizer_is_refused(changed, part):
  with pytest.raises(ValueError) as error:
    recipe.make_optimizer(settings(**changed))
  assert part in str(error.value)


def test_optimizers_can_be_named_but_not_their_parts():
  # Kills: scale_by_learning_rate, which has a learning rate but optimizes
  # nothing.
  for name in ('adam', 'adamw', 'adafactor', 'lion', 'sgd'):
    recipe.make_optimizer(settings(optimizer=dict(name=name)))
  with pytest.raises(ValueError, match='optax has no optimizer'):
    recipe.make_optimizer(
      settings(optimizer=dict(name='scale_by_learning_rate'))
    )


def test_reductions_count_what_they_divide_by():
  # Five tokens in two rows of which one is empty.
  # Kills: a sequence mean that counts the empty row.
  mask = jnp.array([[True] * 5, [False] * 5])
  assert int(recipe.make_reduction('token_mean').count(mask)) == 5
  assert int(recipe.make_reduction('sequence_mean').count(mask)) == 1
  with pytest.raises(ValueError, match="did you mean 'token_mean'"):
    recipe.make_reduction('token_men')
