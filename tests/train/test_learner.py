"""The learner: exact sums over micro-batches, devices and precisions."""

from functools import partial
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jopd import losses, sharding
from jopd.models import lora
from jopd.models.decoder import DecoderConfig, make_model
from jopd.papers.scope import group_softmax
from jopd.train import teacher_sync
from jopd.train.learner import make_gradients, make_learn, make_teach
from jopd.train.rollout_batch import RolloutBatch, TeacherInput
from jopd.train.stage import Aggregation
from jopd.train.state import init_state, state_shardings

ROWS, SLOTS, STEPS, VOCAB = 8, 5, 6, 32
CONFIG = DecoderConfig(
  vocab_size=VOCAB,
  layers=1,
  embed=16,
  heads=4,
  kv_heads=2,
  head_dim=8,
  mlp=24,
  qk_norm=True,
  init_scale=0.3,
)
STUDENT = make_model(CONFIG)
# Ragged, with an empty and a one-token response: a mean of means differs.
LENGTHS = np.array([6, 0, 1, 4, 6, 2, 3, 5])
TEACHERS = {'teacher': make_model(CONFIG)}
TOKENS = Aggregation(losses.token_mean, jnp.sum)
ROWS_MEAN = Aggregation(
  losses.sequence_mean, lambda mask: jnp.sum(jnp.any(mask, axis=1))
)


def _params(seed):
  shapes = jax.eval_shape(STUDENT.init, jax.random.key(0))
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda s: jnp.asarray(rng.normal(0, 0.3, s.shape), jnp.float32), shapes
  )


def _batch():
  rng = np.random.default_rng(0)
  ids = lambda *shape: rng.integers(0, VOCAB, shape).astype(np.int32)
  return RolloutBatch(
    prompt=ids(ROWS, SLOTS),
    prompt_length=np.array([5, 1, 3, 2, 5, 4, 1, 2], np.int32),
    # The teacher reads something else, and more of it.
    teachers={
      'teacher': TeacherInput(
        ids(ROWS, SLOTS + 3), np.arange(1, 9, dtype=np.int32)
      )
    },
    response=ids(ROWS, STEPS),
    response_length=LENGTHS.astype(np.int32),
    end_reason=np.ones(ROWS, np.int32),
    row=losses.Row(),
    mask=np.arange(STEPS)[None, :] < LENGTHS[:, None],
    sampler_logp=rng.normal(-3, 0.1, (ROWS, STEPS)).astype(np.float32),
    rollout_logp=rng.normal(-3, 0.1, (ROWS, STEPS)).astype(np.float32),
  )


def _terms(scalars):
  return {
    'match': losses.Term(
      losses.divergence(
        losses.stop_gradient_reverse_kl, support=partial(losses.top_k, k=4)
      )
    ),
    'reward': losses.Term(losses.policy_gradient(losses.reinforce), coef=0.2),
  }


def _learner(
  tx, terms=None, *, teachers=TEACHERS, sync=None, aggregation=TOKENS, **options
):
  """The update of a student, a pure function."""
  gradients = make_gradients(
    STUDENT, teachers, terms or _terms, aggregation=aggregation, **options
  )
  return make_learn(gradients, tx, teacher_sync=sync)


def _scored(batch, teach, teacher_params):
  """The batch with hidden states."""
  hidden = teach(teacher_params, batch)
  teachers = {
    role: own._replace(hidden=hidden[role])
    for role, own in batch.teachers.items()
  }
  return batch._replace(teachers=teachers)


def _heads(teacher_params):
  return {role: STUDENT.head(own) for role, own in teacher_params.items()}


def _learn(
  *, mesh=None, parts=1, rows_together=1, aggregation=TOKENS, **options
):
  """Two updates; the new parameters and the metrics of the last."""
  # Not Adam: where a gradient is zero but for rounding, it takes its sign.
  tx = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.3, momentum=0.9))
  state, frozen = init_state(_params(1), tx), {'teacher': _params(2)}
  batch, out = _batch(), None
  if mesh is not None:
    place = sharding.param_shardings(mesh, STUDENT.axes, state.params)
    out = state_shardings(mesh, place, state.params, tx)
    state = jax.device_put(state, out)
    frozen = jax.device_put(frozen, {'teacher': place})
    batch = sharding.make_global_array(batch, sharding.batch_sharding(mesh))
    out = out, sharding.replicated(mesh)
  dealt = dict(parts=parts, rows_together=rows_together)
  teach = jax.jit(make_teach(TEACHERS, **dealt))
  learn = jax.jit(
    _learner(
      tx, _terms, aggregation=aggregation, chunk_tokens=16, **dealt, **options
    ),
    out_shardings=out,
  )
  for _ in range(2):
    scored = _scored(batch, teach, frozen)
    state, metrics = learn(state, _heads(frozen), scored)
  return jax.device_get((state.params, metrics))


@pytest.fixture(scope='module')
def reference():
  return _learn()


def _assert_same(got, want, rtol=1e-4, atol=5e-6):
  jax.tree.map(
    partial(np.testing.assert_allclose, rtol=rtol, atol=atol),
    *(
      got,
      want,
    ),
  )


# Kills: dividing each micro-batch by its own count, then averaging.
@pytest.mark.parametrize(
  'aggregation', [TOKENS, ROWS_MEAN], ids=['token', 'row']
)
def test_microbatches_add_up(aggregation):
  whole = _learn(aggregation=aggregation)
  _assert_same(_learn(aggregation=aggregation, parts=4), whole)


# Kills: a loss per device, a missing all-reduce, moments placed elsewhere.
@pytest.mark.parametrize(
  'axes',
  [dict(data=8), dict(data=2, fsdp=2, tensor=2)],
  ids=str,
)
def test_eight_devices_learn_what_one_learns(reference, axes):
  _assert_same(_learn(mesh=sharding.make_mesh(**axes)), reference)


# Two updates of adapters, which end with the merged student. Kills: a base that
# is updated or donated, adapters whose gradients are not summed over devices.
def test_adapters_learn_on_eight_devices_what_they_learn_on_one():
  small = lora.Lora(rank=2, alpha=8.0)
  make = partial(lora.init, STUDENT, small)

  def run(mesh):
    tx = optax.sgd(3.0, momentum=0.9)
    own, base, batch = make(jax.random.key(3)), _params(1), _batch()
    frozen, state = {'teacher': _params(2)}, init_state(own, tx)
    if mesh is not None:
      axes = lora.adapter_axes(STUDENT, small)
      place = sharding.param_shardings(mesh, STUDENT.axes, base)
      own_place = sharding.param_shardings(mesh, axes, own)
      base = jax.device_put(base, place)
      frozen = jax.device_put(frozen, {'teacher': place})
      where = state_shardings(mesh, own_place, own, tx)
      state = jax.device_put(state, where)
      batch = sharding.make_global_array(batch, sharding.batch_sharding(mesh))
    attach = partial(lora.attach, lora=small)
    learn = jax.jit(_learner(tx, attach=attach), donate_argnums=0)
    batch = _scored(batch, jax.jit(make_teach(TEACHERS)), frozen)
    for _ in range(2):
      state, metrics = learn(state, _heads(frozen), batch, base)
    assert jax.tree.structure(state.params) == jax.tree.structure(own)
    _assert_same(
      jax.device_get(base), jax.device_get(_params(1)), rtol=0, atol=0
    )
    merged = lora.merge(attach(base, state.params), jnp.float32)
    return jax.device_get((merged, metrics))

  alone = run(None)
  up = lambda params: np.asarray(params['layers']['mlp']['up'])
  assert np.abs(up(alone[0]) - up(_params(1))).max() > 1e-3
  _assert_same(run(sharding.make_mesh(data=2, fsdp=2, tensor=2)), alone)


# Kills: the gradient of a head, [V, D], that is summed for nobody.
@pytest.mark.parametrize('adapted', [False, True])
def test_a_head_that_is_frozen_has_no_gradient(adapted):
  small = lora.Lora(rank=2)
  own, attach = _params(1), None
  if adapted:
    own = lora.init(STUDENT, small, jax.random.key(0))
    attach = partial(lora.attach, lora=small)
  tx = optax.sgd(1.0)
  learn, frozen = _learner(tx, attach=attach), {'teacher': _params(2)}
  batch = _scored(
    _batch(), partial(jax.eval_shape, make_teach(TEACHERS)), frozen
  )
  text = str(
    jax.make_jaxpr(learn)(
      init_state(own, tx), _heads(frozen), batch, _params(1)
    )
  )
  shape = rf':f32\[{VOCAB},{CONFIG.embed}\] = dot_general'
  assert len(re.findall(shape, text)) == (0 if adapted else 1)


# Kills: a state that is gathered by the update.
def test_the_state_stays_where_it_was_put():
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  tx = optax.adam(1e-3)
  params = _params(1)
  place = sharding.param_shardings(mesh, STUDENT.axes, params)
  where = state_shardings(mesh, place, params, tx)
  state = jax.device_put(init_state(params, tx), where)
  moments = state.opt_state[0].mu['layers']['mlp']['up']
  assert moments.sharding == state.params['layers']['mlp']['up'].sharding
  assert moments.addressable_shards[0].data.size == moments.size // 4


GRADED = {
  'grpo': losses.Term(
    losses.policy_gradient(losses.reinforce, advantage=losses.group_advantage)
  ),
  'match': losses.Term(
    losses.divergence(losses.reverse_kl),
    partial(losses.gate, of='reward', high=0.5),
  ),
}


# A group of four lies in four micro-batches, and on four devices. Kills: group
# statistics of what is at hand, and outcomes that stay when rows are dealt.
def test_rewards_are_of_the_row_wherever_it_is_learnt(monkeypatch):
  monkeypatch.setitem(globals(), '_terms', lambda scalars: GRADED)
  rewards = jnp.array([[1.0, 0.0, 0.0, 1.0], [0.5, 0.25, 0.0, 0.0]])
  row = jax.device_get(losses.group_reward_stats(rewards))
  batch = _batch()._replace(row=row)
  monkeypatch.setitem(globals(), '_batch', lambda: batch)
  whole = _learn()
  assert whole[1]['loss/grpo'][0] != 0
  _assert_same(_learn(parts=4), whole)
  _assert_same(_learn(mesh=sharding.make_mesh(data=8)), whole)


COMPARED = {
  'prefer': losses.Term(losses.preference(beta=0.5)),
  'right': losses.Term(
    losses.negative_log_likelihood(),
    partial(group_softmax, of='student_logp', scale=-1.0),
    rows=partial(losses.rows_where, sources=(1,)),
  ),
}


# Two groups of four, two writers. Kills: groups that micro-batches part,
# denominators of a micro-batch, comparisons that depend on where rows lie.
def test_groups_are_learnt_whole_wherever_they_are(monkeypatch):
  monkeypatch.setitem(globals(), '_terms', lambda scalars: COMPARED)
  number = lambda *x: np.array(x, np.int32)
  row = losses.Row(
    group=number(0, 0, 0, 0, 5, 5, 5, 5), source=number(0, 1, 0, 1, 0, 1, 1, 0)
  )
  batch = _batch()._replace(row=row)
  monkeypatch.setitem(globals(), '_batch', lambda: batch)
  whole = _learn()
  assert whole[1]['loss/right'][1] == LENGTHS[row.source == 1].sum()
  _assert_same(_learn(parts=2, rows_together=4), whole)
  _assert_same(_learn(mesh=sharding.make_mesh(data=4, tensor=2)), whole)


# Kills: 0 / 0, weight decay and momentum that go on without evidence.
def test_a_batch_without_a_token_leaves_the_parameters():
  tx = optax.adamw(0.1, weight_decay=0.1)
  frozen, batch = {'teacher': _params(2)}, _batch()
  nothing = batch._replace(mask=np.zeros_like(batch.mask))
  learn = jax.jit(_learner(tx, aggregation=ROWS_MEAN))
  teach, heads = jax.jit(make_teach(TEACHERS)), _heads(frozen)
  batch = _scored(batch, teach, frozen)
  state, _ = learn(init_state(_params(1), tx), heads, batch)
  nothing = _scored(nothing, teach, frozen)
  after, metrics = learn(state, heads, nothing)
  jax.tree.map(np.testing.assert_array_equal, after.params, state.params)
  assert after.step == 2
  assert metrics['loss'][0] == metrics['grad_norm'][0] == 0
  moved, _ = learn(after, heads, batch)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(moved.params))


# Kills: teachers synced with the parameters before the update, of another role,
# or
# gathered to one device; heads of the frozen ones in their place.
def test_teachers_are_synced_on_eight_devices():
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  tx, params, start = optax.sgd(0.1), _params(1), _params(2)
  place = sharding.param_shardings(mesh, STUDENT.axes, params)
  where = state_shardings(mesh, place, params, tx, ['teacher'])
  state = jax.device_put(init_state(params, tx, {'teacher': start}), where)
  batch = sharding.make_global_array(_batch(), sharding.batch_sharding(mesh))
  teach = jax.jit(make_teach(TEACHERS))
  learn = jax.jit(
    _learner(tx, sync={'teacher': partial(teacher_sync.ema, decay=0.75)}),
    out_shardings=(where, sharding.replicated(mesh)),
  )
  expected = start
  for _ in range(2):
    before = state
    scored = _scored(batch, teach, state.teachers)
    state, metrics = learn(state, {}, scored)
    expected = jax.tree.map(
      lambda own, new: 0.75 * own + 0.25 * np.asarray(new),
      expected,
      state.params,
    )
    _assert_same(state.teachers['teacher'], expected)
  up = state.teachers['teacher']['layers']['mlp']['up']
  assert up.addressable_shards[0].data.size == up.size // 4
  # What is learnt from is the teacher as it was before the update.
  plain = before._replace(teachers={})
  _, as_frozen = jax.jit(_learner(tx))(plain, _heads(before.teachers), scored)
  _assert_same(metrics, as_frozen)


def test_rematerialisation_changes_nothing(reference, monkeypatch):
  monkeypatch.setitem(globals(), 'STUDENT', make_model(CONFIG, remat='full'))
  _assert_same(_learn(), reference)


# Kills: a bfloat16 loss or bfloat16 master weights, which lose small updates.
def test_bfloat16_compute_keeps_float32_masters(reference):
  params, metrics = _learn(compute_dtype=jnp.bfloat16)
  assert {p.dtype for p in jax.tree.leaves(params)} == {np.dtype('float32')}
  for name in ('reverse_kl', 'student_entropy'):
    got, want = (np.divide(*m[name]) for m in (metrics, reference[1]))
    assert abs(got - want) < 0.03 * abs(want)


# Kills: off-by-one teacher scores, prompts that shift the alignment, tokens
# beyond the response that count.
def test_a_student_that_is_its_teacher_has_nothing_to_learn():
  batch = _batch()
  batch = batch._replace(
    teachers={'teacher': TeacherInput(batch.prompt, batch.prompt_length)}
  )
  params = _params(1)
  tx = optax.sgd(1.0)
  terms = {'match': losses.Term(losses.divergence(losses.reverse_kl))}
  learn, frozen = _learner(tx, lambda scalars: terms), {'teacher': params}
  batch = _scored(batch, jax.jit(make_teach(TEACHERS)), frozen)
  _, metrics = jax.jit(learn)(init_state(params, tx), _heads(frozen), batch)
  assert metrics['loss'][0] < 1e-6
  assert metrics['grad_norm'][0] < 1e-5
  assert metrics['reverse_kl'][1] == LENGTHS.sum()


# Kills: anything beyond the response reaching the loss.
def test_padding_of_the_response_is_never_read(reference, monkeypatch):
  clean = _batch()
  junk = clean._replace(
    response=np.where(clean.mask, clean.response, VOCAB - 1),
    sampler_logp=np.where(clean.mask, clean.sampler_logp, np.nan),
    rollout_logp=np.where(clean.mask, clean.rollout_logp, np.nan),
  )
  monkeypatch.setitem(globals(), '_batch', lambda: junk)
  _assert_same(_learn(), reference)


# Kills: computing the loss on the whole [B, T, V].
def test_no_program_holds_the_logits_of_a_batch():
  tx = optax.adam(1e-3)
  hidden = {'teacher': jnp.zeros((1, ROWS, STEPS, CONFIG.embed))}
  batch = _scored(_batch(), lambda *_: hidden, None)
  heads = _heads({'teacher': _params(2)})
  args = init_state(_params(1), tx), heads, batch
  learn = _learner(tx, chunk_tokens=ROWS)
  text = jax.jit(learn).lower(*args).compile().as_text()
  assert f'f32[{ROWS},{VOCAB}]' in text.replace(' ', '')
  for shape in (f'{ROWS},{STEPS},{VOCAB}', f'{ROWS * STEPS},{VOCAB}'):
    assert f'[{shape}]' not in text


def _poison_hidden(batch):
  own = batch.teachers['teacher']
  own = own._replace(hidden=own.hidden.at[0, 0, 1, 2].set(jnp.nan))
  return batch._replace(teachers=batch.teachers | {'teacher': own})


def _poison_reward(batch):
  reward = np.where(np.arange(ROWS) == 2, np.inf, batch.row.reward)
  return batch._replace(row=batch.row._replace(reward=reward))


POISONS = {'teacher': _poison_hidden, 'reward': _poison_reward}


# Adam counts its updates, and a synced teacher goes half of the way at each.
# Kills: moments that decay, a count that goes on, a teacher that moves, and
# NaN times 0.
@pytest.mark.parametrize('kind', POISONS)
def test_a_poisoned_update_is_as_if_it_had_not_been(kind):
  terms = GRADED | {
    'also': losses.Term(losses.policy_gradient(losses.reinforce))
  }
  tx = optax.adamw(0.1, weight_decay=0.1)
  half = partial(teacher_sync.ema, decay=0.5)
  learn = jax.jit(
    _learner(
      tx,
      lambda scalars: terms,
      teachers=TEACHERS | {'slow': STUDENT},
      sync={'slow': half},
    )
  )
  prompts = {'slow': TeacherInput(_batch().prompt, _batch().prompt_length)}
  rewards = jnp.array([[1.0, 0.0, 0.0, 1.0], [0.5, 0.25, 0.0, 0.0]])
  batch = _batch()._replace(
    teachers=_batch().teachers | prompts,
    row=jax.device_get(losses.group_reward_stats(rewards)),
  )
  frozen, start = {'teacher': _params(2)}, _params(1)
  teach = jax.jit(make_teach(TEACHERS | {'slow': STUDENT}))
  batch = _scored(batch, teach, frozen | {'slow': start})
  heads = _heads(frozen)
  state = init_state(start, tx, {'slow': start})
  state, metrics = learn(state, heads, batch)
  assert metrics['skipped_updates'] == (0, 1)
  skipped, metrics = learn(state, heads, POISONS[kind](batch))
  assert metrics['skipped_updates'] == (1, 1)
  assert not np.isfinite(metrics['loss'][0])
  assert (int(skipped.step), int(skipped.guard.skipped)) == (2, 1)
  same = lambda a, b: jax.tree.map(np.testing.assert_array_equal, a, b)
  same(skipped._replace(step=0, guard=0), state._replace(step=0, guard=0))
  after, _ = learn(skipped, heads, batch)
  without, _ = learn(state, heads, batch)
  same(after._replace(step=0, guard=0), without._replace(step=0, guard=0))
  same(after.guard.norms, without.guard.norms)
  assert (int(after.step), int(after.guard.in_a_row)) == (3, 0)
