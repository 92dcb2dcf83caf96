"""The chunked loss is the dense one, without the [B, T, V] array."""

import functools
import re

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np
import oracles
import pytest

from jopd import losses
from jopd.losses import kernel
from jopd.papers import prefix_teach, rlad

B, T, D, V = 4, 7, 6, 18
LENGTHS = np.array([7, 1, 0, 4])  # full, one token, empty, middling
COUNT = int(LENGTHS.sum())
RNG = np.random.default_rng(0)


def normal(*shape):
  return jnp.asarray(RNG.normal(size=shape), jnp.float32)


HIDDEN, HEAD = normal(B, T, D), normal(V, D)
TEACHERS = {  # of another width, and with more rows than the student
  'teacher': (normal(B, T, 5), normal(V + 4, 5)),
  'other': (normal(B, T, D), normal(V, D)),
}
TOKEN = jnp.asarray(RNG.integers(V, size=(B, T)))
SAMPLER_LOGP = normal(B, T) - 3
MASK = jnp.asarray(np.arange(T)[None, :] < LENGTHS[:, None])

TERMS = {
  name: losses.Term(objective)
  for name, objective in {
    'reverse': losses.divergence(losses.reverse_kl),
    'forward': losses.divergence(
      losses.forward_kl,
      target=functools.partial(losses.teacher, role='other'),
    ),
    'jsd': losses.divergence(
      functools.partial(losses.generalized_jsd, beta=0.3),
      support=functools.partial(losses.top_k, k=5, of='student'),
    ),
    'top': losses.divergence(
      losses.stop_gradient_reverse_kl,
      support=functools.partial(losses.top_k, k=5, tail='drop'),
    ),
    'renormalized': losses.divergence(
      losses.reverse_kl,
      support=functools.partial(losses.top_k, k=5, tail='renormalize'),
    ),
    'k2': losses.kl_estimate(losses.k2),
    'k3': losses.kl_estimate(losses.k3),
    'reinforce': losses.policy_gradient(losses.reinforce),
    'ppo_clip': losses.policy_gradient(
      losses.ppo_clip, old_policy=losses.old_policies.sampler
    ),
    'imitation': losses.negative_log_likelihood(),
  }.items()
}
TERMS['jsd'] = TERMS['jsd']._replace(weight=lambda stats: stats.student_entropy)
TERMS['forward'] = TERMS['forward']._replace(weight=lambda s: s.reverse_kl)
OPD = {'opd': TERMS['reverse']}


def with_coefs(coefs):
  return {
    name: term._replace(coef=coef)
    for (name, term), coef in zip(TERMS.items(), coefs, strict=True)
  }


def chunked(hidden, head, teachers=TEACHERS, terms=OPD, mask=MASK, **kwargs):
  kwargs = {'count': COUNT, 'chunk_tokens': 8} | kwargs
  return losses.distill_loss_chunked(
    hidden, head, teachers, TOKEN, SAMPLER_LOGP, terms, mask=mask, **kwargs
  )


def dense(
  hidden, head, teachers=TEACHERS, terms=OPD, temperature=1.0, **kwargs
):
  def logp(hidden, head):
    logits = jnp.einsum('btd,vd->btv', hidden, head[:V])
    return losses.log_probs(logits, temperature=temperature)

  batch = losses.TokenBatch(
    student_logp=logp(hidden, head),
    logps={name: logp(*teacher) for name, teacher in teachers.items()},
    token=TOKEN,
    sampler_logp=SAMPLER_LOGP,
  )
  kwargs = {'mask': MASK, 'count': COUNT} | kwargs
  return losses.distill_loss(batch, terms, **kwargs)


QUICK = {'xla_backend_optimization_level': 0}  # each program runs once or twice


def gradients(function, has_aux=True):
  both = jax.value_and_grad(function, argnums=(0, 1), has_aux=has_aux)
  return jax.jit(both, compiler_options=QUICK)


def assert_close(got, expected, tolerance=2e-5):
  for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
    scale = max(1e-3, float(jnp.max(jnp.abs(y))))
    np.testing.assert_allclose(x, y, atol=tolerance * scale, rtol=1e-5)


# Every objective by itself (its coefficient 1, the others 0), and chunks of one
# column, of two (7 is no multiple) and of more than T. Kills a wrong weight, a
# tail that is lost or counted twice, a transposed head.
@pytest.mark.parametrize(
  'chunk_tokens, reduce',
  [
    (1, losses.token_mean),
    (8, losses.sequence_mean),
    (1000, losses.token_mean),
  ],
)
def test_chunked_equals_dense_for_every_objective(chunk_tokens, reduce):
  @gradients
  def got(hidden, head, coefs):
    terms = with_coefs(coefs)
    kwargs = {'reduce': reduce, 'temperature': 0.7}
    return chunked(
      hidden, head, terms=terms, chunk_tokens=chunk_tokens, **kwargs
    )

  for coefs in np.eye(len(TERMS), dtype=np.float32):
    value, grads = gradients_of_dense(HIDDEN, HEAD, coefs, reduce)
    (chunked_value, _), chunked_grads = got(HIDDEN, HEAD, coefs)
    np.testing.assert_allclose(chunked_value, value, rtol=2e-5, atol=1e-6)
    assert_close(chunked_grads, grads)


@functools.partial(jax.jit, static_argnums=3, compiler_options=QUICK)
def gradients_of_dense(hidden, head, coefs, reduce):
  def loss(hidden, head):
    terms = with_coefs(coefs)
    return dense(hidden, head, terms=terms, reduce=reduce, temperature=0.7)

  return jax.value_and_grad(loss, argnums=(0, 1))(hidden, head)


# Against loops, not against ourselves: value, d_hidden and d_head of the
# forward KL, (p - q) / count to the logits.
def test_chunked_equals_a_float64_oracle():
  terms = {'a': losses.Term(losses.divergence(losses.forward_kl))}
  (value, _), (d_hidden, d_head) = gradients(
    functools.partial(chunked, terms=terms)
  )(HIDDEN, HEAD)
  hidden, head = np.asarray(HIDDEN, np.float64), np.asarray(HEAD, np.float64)
  teacher, teacher_head = (
    np.asarray(x, np.float64) for x in TEACHERS['teacher']
  )
  total, want_hidden, want_head = 0.0, np.zeros((B, T, D)), np.zeros((V, D))
  for b in range(B):
    for t in range(LENGTHS[b]):
      p = oracles.softmax(head @ hidden[b, t])
      q = oracles.softmax(teacher_head[:V] @ teacher[b, t])
      total += oracles.forward_kl(p, q) / COUNT
      d_logits = oracles.grad_full_forward_kl(p, q) / COUNT
      want_hidden[b, t] = d_logits @ head
      want_head += np.outer(d_logits, hidden[b, t])
  np.testing.assert_allclose(value, total, rtol=1e-5)
  np.testing.assert_allclose(d_hidden, want_hidden, atol=1e-6)
  np.testing.assert_allclose(d_head, want_head, atol=1e-6)


# Trap 34. Kills any path on which identical models have a loss.
def test_identical_models_cost_nothing():
  terms = {k: TERMS[k] for k in ('reverse', 'jsd', 'top', 'k2')}

  @gradients
  def run(hidden, head, temperature):
    teachers = {'teacher': (hidden, head)}
    return chunked(hidden, head, teachers, terms, temperature=temperature)

  for temperature in (0.5, 1.0, 3.0):
    (loss, _), grads = run(HIDDEN, HEAD, temperature)
    np.testing.assert_allclose(loss, 0, atol=1e-6)
    assert_close(grads, jax.tree.map(jnp.zeros_like, grads), 1e-3)


# Trap 10. Rows that only one head has get no mass and no gradient, however
# likely they look. Kills a normaliser over padding, and a cut after it.
@pytest.mark.parametrize('vocab_size', [None, V - 3])
def test_padding_ids_do_not_exist(vocab_size):
  cut = vocab_size or V
  padded = jnp.concatenate([HEAD, jnp.full([6, D], 1e4)])
  terms = {'a': TERMS['reverse'], 'b': TERMS['forward']}
  run = functools.partial(chunked, terms=terms, vocab_size=vocab_size)
  (loss, _), (d_hidden, d_head) = gradients(run)(HIDDEN, padded)
  expected = functools.partial(
    dense,
    terms=terms,
    teachers={k: (h, w[:cut]) for k, (h, w) in TEACHERS.items()},
  )
  value, grads = gradients(expected, has_aux=False)(HIDDEN, HEAD[:cut])
  np.testing.assert_allclose(loss, value, rtol=1e-5)
  assert_close((d_hidden, d_head[:cut]), grads)
  np.testing.assert_array_equal(d_head[cut:], np.zeros([V + 6 - cut, D]))


# Trap 7. Kills NaN * 0, in the loss, the metrics, or the head's gradient.
def test_nothing_at_masked_places_matters():
  def put(x, value):
    dead = ~MASK.reshape(MASK.shape + (1,) * (x.ndim - 2))
    return jnp.where(dead, jnp.asarray(value, x.dtype), x)

  @gradients
  def run(hidden, head, value, token):
    return losses.distill_loss_chunked(
      put(hidden, value),
      head,
      {k: (put(h, value), w) for k, (h, w) in TEACHERS.items()},
      put(TOKEN, token),
      put(SAMPLER_LOGP, value),
      TERMS,
      mask=MASK,
      count=COUNT,
      chunk_tokens=8,
    )

  clean = run(HIDDEN, HEAD, 0.0, 0)
  for poison in (np.nan, np.inf):
    got = run(HIDDEN, HEAD, poison, 10**6)
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(got))
    jax.tree.map(np.testing.assert_array_equal, got, clean)
  d_hidden = np.asarray(got[1][0])
  assert (d_hidden[~np.asarray(MASK)] == 0).all()


# Trap 29. Kills 0 / 0 of a chunk, and of a batch, in which nothing is live.
def test_an_empty_batch_is_zero_with_zero_gradients():
  (loss, metrics), grads = gradients(
    lambda h, w: chunked(
      h, w, terms=TERMS, mask=jnp.zeros_like(MASK), count=jnp.sum(MASK) * 0
    )
  )(HIDDEN, HEAD)
  assert loss == 0
  assert all(total == count == 0 for total, count in metrics.values())
  for grad in grads:
    np.testing.assert_array_equal(grad, np.zeros(grad.shape))


# Live columns 0, 5 and 6 of seven; chunks of two columns start at 0, 2, 4 and 5
# (the last is moved to be whole), so the second has nothing to do. Kills
# padding that costs as much as tokens, and an early stop at the first gap.
def test_chunks_without_a_live_token_are_not_visited():
  visits = []

  def objective(batch):
    jax.debug.callback(lambda: visits.append(1))
    return -losses.token_logp(batch.student_logp, batch.token)

  mask = np.zeros((B, T), bool)
  mask[0, 0] = mask[1, 5] = mask[2, 6] = True
  mask = jnp.asarray(mask)
  terms = {'a': losses.Term(objective)}
  (loss, _), grads = gradients(
    functools.partial(chunked, terms=terms, mask=mask, count=3)
  )(HIDDEN, HEAD)
  jax.effects_barrier()
  assert len(visits) == 3
  expected = functools.partial(
    dense, terms={'a': TERMS['imitation']}, mask=mask, count=3
  )
  value, dense_grads = gradients(expected, has_aux=False)(HIDDEN, HEAD)
  np.testing.assert_allclose(loss, value, rtol=1e-5)
  assert_close(grads, dense_grads)


# Kills gradients computed for an evaluation: two products of hidden and head
# for the logits, and two more only when differentiated.
def test_the_value_alone_takes_no_gradient():
  def products(function):
    text = jax.jit(function).lower(HIDDEN, HEAD).as_text()
    return len(re.findall(r'stablehlo\.dot_general', text))

  one = {'teacher': TEACHERS['teacher']}
  run = functools.partial(chunked, teachers=one)
  assert products(run) == 2
  assert products(jax.value_and_grad(run, argnums=(0, 1), has_aux=True)) == 4


# Kills the sum of a gradient that nobody reads: with adapters the head is
# frozen. As in a step, the loss is differentiated inside a scan; the products
# are the logits of both and the gradient of hidden, not that of the head.
def test_a_frozen_head_costs_no_gradient():
  one = {'teacher': TEACHERS['teacher']}
  loss = lambda h, w: chunked(h, w, one)[0]

  def step(head, argnums):
    grad = jax.grad(loss, argnums=argnums)
    of_parts = lambda sums, x: (jax.tree.map(jnp.add, sums, grad(x, head)), ())
    args = [(HIDDEN, head)[i] for i in argnums]
    zeros = tuple(jax.tree.map(jnp.zeros_like, args))
    return jax.lax.scan(of_parts, zeros, jnp.stack([HIDDEN, HIDDEN]))[0]

  alone = jax.jit(lambda head: step(head, (0,)))
  both = jax.jit(lambda head: step(head, (0, 1)))
  np.testing.assert_array_equal(alone(HEAD)[0], both(HEAD)[0])
  products = [
    str(jax.make_jaxpr(f)(HEAD)).count('dot_general') for f in (alone, both)
  ]
  assert products == [3, 4]


# Two passes: weights and advantages that are known only when all tokens, or
# those to come, have been seen, on chunks that hold two columns of seven. Kills
# a quantile over a chunk, a sum that stops at a chunk's end, a mask that is
# forgotten, stats of another target than the term's own.
def test_weights_and_advantages_may_read_beyond_their_chunk():
  entropy = functools.partial(
    losses.top_fraction, of='student_entropy', fraction=0.4
  )
  to_come = functools.partial(losses.discounted_return, gamma=0.7)
  other = functools.partial(losses.teacher, role='other')
  mean = lambda stats: jnp.full_like(stats.target_logp, stats.reverse_kl.mean())
  terms = {
    'top': TERMS['reverse']._replace(weight=entropy),
    'unmarked': TERMS['forward']._replace(weight=mean),
    'row': losses.Term(
      losses.policy_gradient(losses.reinforce, advantage=to_come, target=other)
    ),
    'both': losses.Term(
      losses.policy_gradient(
        losses.ppo_clip,
        advantage=to_come,
        old_policy=losses.old_policies.sampler,
      ),
      weight=entropy,
    ),
    'between': losses.Term(
      losses.policy_gradient(
        losses.reinforce,
        advantage=functools.partial(losses.future_mean, own=1.0),
        old_policy=functools.partial(rlad.geometric, sampler=0.5),
        target=other,
      ),
      weight=functools.partial(prefix_teach.before_drop, segment=2, least=1),
    ),
    'nested': losses.Term(
      losses.policy_gradient(
        losses.reinforce,
        advantage=functools.partial(losses.clip, low=-1.0, advantage=to_come),
      )
    ),
  }
  value, dense_grads = gradients(
    functools.partial(dense, terms=terms), has_aux=False
  )(HIDDEN, HEAD)
  for chunk_tokens in (8, B * T):
    (loss, metrics), grads = gradients(
      functools.partial(chunked, terms=terms, chunk_tokens=chunk_tokens)
    )(HIDDEN, HEAD)
    np.testing.assert_allclose(loss, value, rtol=2e-5)
    assert_close(grads, dense_grads)
    assert set(metrics) > {f'loss/{name}' for name in terms}


# Four products of hidden and head for one pass with its gradients, two more for
# another. Kills a first pass that everybody pays for.
def test_a_first_pass_is_made_only_for_those_who_look_far():
  def products(term):
    run = functools.partial(chunked, terms={'a': term})
    run = jax.value_and_grad(run, argnums=(0, 1), has_aux=True)
    one = {'teacher': TEACHERS['teacher']}
    text = jax.jit(run).lower(HIDDEN, HEAD, one).as_text()
    return len(re.findall(r'stablehlo\.dot_general', text))

  near = functools.partial(losses.gate, of='target_entropy', low=1.0)
  assert products(TERMS['reverse']._replace(weight=near)) == 4
  far = lambda stats: stats.reverse_kl
  assert products(TERMS['reverse']._replace(weight=far)) == 6


# Kills a block or a tile that starts at the wrong row, is counted twice, or is
# left out: blocks of one and of two rows, and tiles that do not divide V.
@pytest.mark.parametrize('elements', [17, 2 * (V + 4)])
def test_the_size_of_blocks_changes_nothing(elements, monkeypatch):
  terms = {name: TERMS[name] for name in ('reverse', 'jsd', 'k2')} | {
    'far': TERMS['top']._replace(
      weight=functools.partial(
        losses.top_fraction, of='reverse_kl', fraction=0.5
      )
    )
  }
  run = functools.partial(chunked, terms=terms)
  want = functools.partial(dense, terms=terms)
  value, grads = gradients(want, has_aux=False)(HIDDEN, HEAD)
  monkeypatch.setattr(kernel, 'BLOCK', elements)
  (loss, _), got = gradients(run)(HIDDEN, HEAD)
  np.testing.assert_allclose(loss, value, rtol=2e-5)
  assert_close(got, grads)


def largest_float(function, *args):
  """Elements of the largest float array in the compiled program."""
  text = jax.jit(function).lower(*args).compile().as_text()
  shapes = re.findall(r'\b(?:f64|f32|bf16|f16)\[([\d,]+)\]', text)
  return max(int(np.prod([int(n) for n in s.split(',')])) for s in shapes)


# Promise 6. Kills a chunked loss whose backward pass, or whose stats, hold it
# all the same. The dense one shows that the search finds such arrays.
@pytest.mark.parametrize('support', ['full', 'top_k'])
def test_no_array_of_all_logits_is_ever_held(support):
  vocab = 512
  head, teacher_head = normal(vocab, D), normal(vocab, D)
  support = {
    'full': losses.full,
    'top_k': functools.partial(losses.top_k, k=4),
  }[support]
  terms = {
    'a': losses.Term(losses.divergence(losses.reverse_kl, support=support))
  }

  def run(hidden, head, teacher_head):
    teachers = {'teacher': (TEACHERS['other'][0], teacher_head)}
    return chunked(hidden, head, teachers, terms)

  def run_dense(hidden, head, teacher_head):
    logps = [
      losses.log_probs(jnp.einsum('btd,vd->btv', *pair))
      for pair in ((hidden, head), (TEACHERS['other'][0], teacher_head))
    ]
    batch = losses.TokenBatch(
      logps[0], {'teacher': logps[1]}, TOKEN, SAMPLER_LOGP
    )
    return losses.distill_loss(batch, terms, mask=MASK, count=COUNT)

  both = functools.partial(jax.value_and_grad, argnums=(0, 1))
  args = HIDDEN, head, teacher_head
  everything = B * T * vocab
  assert largest_float(both(run, has_aux=True), *args) < everything / 3
  assert largest_float(both(run_dense), *args) >= everything


# Trap 33. 512 chunks of one token, each adding about the same to the head's
# gradient. A float32 sum is right to the rounding of its bfloat16 inputs; a
# bfloat16 sum stops growing at 256 summands, as the loop here shows.
def test_the_heads_gradient_is_accumulated_in_float32():
  tokens, width, vocab = 512, 4, 8
  rng = np.random.default_rng(1)
  hidden = jnp.asarray(
    1 + 0.1 * rng.normal(size=(1, tokens, width)), jnp.bfloat16
  )
  head = jnp.asarray(rng.normal(size=(vocab, width)), jnp.bfloat16)
  other = jnp.asarray(rng.normal(size=(vocab, width)), jnp.bfloat16)

  def loss(hidden, head):
    return losses.distill_loss_chunked(
      hidden,
      head,
      {'teacher': (hidden, other)},
      jnp.zeros([1, tokens], int),
      jnp.zeros([1, tokens]),
      {'a': losses.Term(losses.divergence(losses.forward_kl))},
      mask=jnp.ones([1, tokens], bool),
      count=tokens,
      chunk_tokens=1,
      with_stats=False,
    )

  (value, _), (d_hidden, d_head) = gradients(loss)(hidden, head)
  assert value.dtype == jnp.float32
  assert d_hidden.dtype == d_head.dtype == jnp.bfloat16
  h, w, o = (np.asarray(x, np.float64) for x in (hidden[0], head, other))
  exact, rounded = np.zeros((vocab, width)), np.zeros((vocab, width))
  for t in range(tokens):
    p, q = oracles.softmax(w @ h[t]), oracles.softmax(o @ h[t])
    new = np.outer(oracles.grad_full_forward_kl(p, q), h[t]) / tokens
    exact += new
    rounded = np.asarray((rounded + new).astype(jnp.bfloat16), np.float64)
  scale = np.abs(exact).max()
  assert np.abs(np.asarray(d_head, np.float64) - exact).max() < 0.005 * scale
  assert np.abs(rounded - exact).max() > 0.05 * scale


# Kills sums over masked tokens, exchanged names, a coefficient in the metric.
def test_metrics_are_sums_over_live_tokens():
  terms = {
    'opd': TERMS['reverse']._replace(coef=5.0),
    'sft': TERMS['imitation'],
  }
  rollout_logp = SAMPLER_LOGP - 1.0
  loss = functools.partial(chunked, terms=terms, rollout_logp=rollout_logp)
  _, metrics = jax.jit(loss)(HIDDEN, HEAD)
  unlogged = {'mask', 'margin', 'in_top', *losses.Row._fields}
  stats = set(losses.TokenStats._fields) - unlogged
  ratios = {'ratio', 'ratio_squared'}
  assert set(metrics) == {'loss/opd', 'loss/sft', *ratios, *stats}
  assert all(count == COUNT for _, count in metrics.values())
  kl = nll = difference = squared = 0.0
  for b in range(B):
    for t in range(LENGTHS[b]):
      logits = np.asarray(HEAD, np.float64) @ np.asarray(HIDDEN[b, t])
      teacher, head = TEACHERS['teacher']
      target = np.asarray(head[:V], np.float64) @ np.asarray(teacher[b, t])
      kl += oracles.reverse_kl(oracles.softmax(logits), oracles.softmax(target))
      logp = oracles.log_softmax(logits)[TOKEN[b, t]]
      nll -= logp
      difference += abs(logp - float(rollout_logp[b, t]))
      squared += np.exp(2 * (logp - float(SAMPLER_LOGP[b, t])))
  for name, value in {
    'loss/opd': kl,
    'reverse_kl': kl,
    'loss/sft': nll,
    'student_logp': -nll,
    'logp_difference': difference,
    'ratio_squared': squared,
    'sampler_logp': float(jnp.sum(jnp.where(MASK, SAMPLER_LOGP, 0))),
  }.items():
    np.testing.assert_allclose(metrics[name][0], value, rtol=2e-5)


# SFT is a term too. Kills a loss that cannot do without a teacher, and stats of
# a target that is not there.
def test_no_teacher_is_needed_to_imitate():
  terms = {'sft': TERMS['imitation']}
  loss, metrics = jax.jit(lambda h, w: chunked(h, w, {}, terms))(HIDDEN, HEAD)
  np.testing.assert_allclose(loss, dense(HIDDEN, HEAD, terms=terms), rtol=1e-5)
  assert set(metrics) == {
    'loss/sft',
    'student_logp',
    'sampler_logp',
    'student_entropy',
    'ratio',
    'ratio_squared',
  }
  _, metrics = jax.eval_shape(
    lambda h, w: chunked(h, w, {}, terms, with_stats=False), HIDDEN, HEAD
  )
  assert set(metrics) == {'loss/sft'}


# Kills a target of the stats that is fixed to one name.
def test_stats_compare_with_the_target_they_are_given():
  other = functools.partial(losses.teacher, role='other')
  term = losses.Term(losses.divergence(losses.reverse_kl, target=other))
  _, metrics = chunked(HIDDEN, HEAD, terms={'a': term}, stats_target=other)
  np.testing.assert_allclose(
    metrics['reverse_kl'][0], metrics['loss/a'][0], rtol=1e-5
  )


# Kills metrics that the optimizer follows, and teachers that learn.
def test_gradients_reach_only_the_student_and_only_from_the_loss():
  def total(teachers, hidden):
    loss, metrics = chunked(hidden, HEAD, teachers)
    return loss, sum(x for x, _ in metrics.values())

  to_teachers = jax.grad(lambda *a: total(*a)[0])(TEACHERS, HIDDEN)
  from_metrics = jax.grad(lambda *a: total(*a)[1], argnums=1)(TEACHERS, HIDDEN)
  for grad in jax.tree.leaves((to_teachers, from_metrics)):
    np.testing.assert_array_equal(grad, np.zeros(grad.shape))


# Kills a custom gradient that ignores its cotangent, or breaks under remat.
def test_it_composes_with_the_rest_of_a_step():
  def step(inputs, head, wrap):
    hidden = jnp.tanh(inputs)
    loss = wrap(lambda h, w: chunked(h, w)[0])(hidden, head)
    return 3.0 * loss + jnp.sum(head**2)

  def step_dense(inputs, head):
    return 3.0 * dense(jnp.tanh(inputs), head) + jnp.sum(head**2)

  expected = gradients(step_dense, has_aux=False)(HIDDEN, HEAD)
  for wrap in (lambda f: f, jax.checkpoint):
    got = gradients(functools.partial(step, wrap=wrap), has_aux=False)
    assert_close(got(HIDDEN, HEAD), expected)


# Kills a coefficient, a temperature or a count that is baked in.
def test_scheduled_scalars_do_not_retrace():
  traces = []

  @jax.jit
  def run(coef, temperature, count):
    traces.append(1)
    terms = {'opd': OPD['opd']._replace(coef=coef)}
    return chunked(
      HIDDEN, HEAD, terms=terms, temperature=temperature, count=count
    )[0]

  one = run(jnp.float32(1), jnp.float32(1), jnp.int32(4))
  six = run(jnp.float32(3), jnp.float32(1), jnp.int32(2))
  run(jnp.float32(3), jnp.float32(0.5), jnp.int32(2))
  assert len(traces) == 1
  np.testing.assert_allclose(six, 6 * one, rtol=1e-6)


# Promise 3: B over data and fsdp, V over tensor, against one device; heads of
# 18 and 22 rows, so that the cut falls inside a shard. Kills a sum that is not
# reduced over devices.
def test_a_mesh_changes_nothing():
  names = ('reverse', 'forward', 'renormalized', 'ppo_clip')
  run = functools.partial(chunked, terms={name: TERMS[name] for name in names})
  expected = gradients(run)(HIDDEN, HEAD, TEACHERS)
  mesh = jax.make_mesh(
    (2, 2, 2), ('data', 'fsdp', 'tensor'), axis_types=(AxisType.Auto,) * 3
  )
  rows = NamedSharding(mesh, PartitionSpec(('data', 'fsdp')))
  vocab = NamedSharding(mesh, PartitionSpec('tensor'))
  with jax.set_mesh(mesh):
    got = gradients(run)(
      jax.device_put(HIDDEN, rows),
      jax.device_put(HEAD, vocab),
      {
        name: (jax.device_put(hidden, rows), jax.device_put(head, vocab))
        for name, (hidden, head) in TEACHERS.items()
      },
    )
  assert_close(got, expected)


@pytest.mark.parametrize(
  'wrong, message',
  [
    ({'terms': {}}, 'at least one term'),
    ({'chunk_tokens': 0}, 'chunk_tokens must be at least 1'),
    ({'vocab_size': V + 1}, r'vocab_size must be in \[1, 18\], got 19'),
    (
      {'teachers': {'teacher': (HIDDEN[:, :3], HEAD)}},
      r'teacher: expected hidden \[4, 7, D\]',
    ),
    (
      {'teachers': {'teacher': (HIDDEN, HEAD[:, :3])}},
      r'teacher: expected hidden \[4, 7, D\] and head \[V, D\]',
    ),
    ({'teachers': {'a': (HIDDEN, HEAD)}}, r"named 'teacher', got \['a', "),
  ],
)
def test_what_cannot_be_meant_is_refused(wrong, message):
  with pytest.raises(ValueError, match=message):
    chunked(HIDDEN, HEAD, **wrong)


# An outcome is [B] here and [B, T] there. Kills one that is not cut with its
# chunk, that is left where it stood in a second pass, or read for another row.
def test_chunked_equals_dense_with_rewards():
  rewards = jnp.array([[1.0, 0.0], [0.25, 0.5]])
  row = losses.group_reward_stats(rewards)
  to_come = functools.partial(
    losses.discounted_return, gamma=0.5, advantage=losses.group_advantage
  )
  right = functools.partial(losses.gate, of='reward', low=0.5)
  pg = functools.partial(losses.policy_gradient, losses.reinforce)
  one_pass = {
    'grpo': losses.Term(pg(advantage=losses.group_advantage)),
    'routed': losses.Term(losses.negative_log_likelihood(), right),
  }
  two_passes = one_pass | {'later': losses.Term(pg(advantage=to_come))}

  def dense_loss(hidden, head, terms):
    batch = losses.TokenBatch(
      losses.log_probs(jnp.einsum('btd,vd->btv', hidden, head)),
      {},
      TOKEN,
      SAMPLER_LOGP,
      row=jax.tree.map(lambda x: jnp.repeat(x[:, None], T, axis=1), row),
    )
    return losses.distill_loss(batch, terms, mask=MASK, count=COUNT)

  for terms in (one_pass, two_passes):
    want, want_grads = gradients(
      functools.partial(dense_loss, terms=terms), has_aux=False
    )(HIDDEN, HEAD)
    (got, metrics), grads = gradients(
      functools.partial(chunked, teachers={}, terms=terms, row=row)
    )(HIDDEN, HEAD)
    np.testing.assert_allclose(got, want, rtol=2e-5)
    assert_close(grads, want_grads)
    # They would be means over tokens; the loop has those over rows.
    assert not set(metrics) & set(losses.Row._fields)
