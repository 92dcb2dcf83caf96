"""Where truncated losses come to rest, by the losses alone, without a model.

On a fixed support that holds the share Q of the teacher, the raw top-K reverse
KL rests where the student has p = q / e: it gives up 63 % of that mass. The raw
forward KL takes all mass into the support. A stop-gradient, a bucket and the
full vocabulary rest at the teacher, renormalisation at its shape.

Set-up: 256 logits, random student and teacher, the teacher's 8 likeliest as the
support, Adam until nothing moves.
"""

from functools import partial
import math

import jax
import jax.numpy as jnp
import optax

from jopd import losses

SIGNATURE = (
  'raw reverse KL: mass on the support within 2 % of Q / e',
  'raw reverse KL: value within 2 % of -Q / e',
  'raw forward KL: mass on the support above 0.99',
  'stop-gradient and bucket: mass on the support within 2 % of Q',
  'gradient at student = teacher: above 1e-2 raw, below 1e-6 for the others',
)
SHOWN = ('mass', 'value', 'gradient_at_teacher', 'teacher_share')
K, VOCAB, STEPS = 8, 256, 6000
_on = lambda tail: partial(losses.top_k, k=K, of='target', tail=tail)
VARIANTS = {
  'raw reverse KL': (losses.reverse_kl, _on('drop')),
  'raw forward KL': (losses.forward_kl, _on('drop')),
  'stop-gradient': (losses.stop_gradient_reverse_kl, _on('drop')),
  'tail bucket': (losses.reverse_kl, _on('bucket')),
  'renormalised': (losses.reverse_kl, _on('renormalize')),
  'full vocabulary': (losses.reverse_kl, losses.full),
}


def measure(lab) -> dict[str, dict[str, float]]:
  """Descends each loss from the same student."""
  keys = jax.random.split(jax.random.key(lab.seed))
  student, teacher = (1.5 * jax.random.normal(k, (VOCAB,)) for k in keys)
  teacher_logp = losses.log_probs(teacher)
  share = float(jnp.sum(jnp.sort(jnp.exp(teacher_logp))[-K:]))
  rows = {}
  for name, (divergence, support) in VARIANTS.items():

    def loss(logits, divergence=divergence, support=support):
      return divergence(*support(losses.log_probs(logits), teacher_logp))

    final = _descend(loss, student)
    kept = _on('drop')(losses.log_probs(final), teacher_logp)[0]
    rows[name] = dict(
      teacher_share=share,
      mass=float(jnp.sum(jnp.exp(kept))),
      value=float(loss(final)),
      gradient_at_teacher=float(jnp.linalg.norm(jax.grad(loss)(teacher))),
    )
  return rows


def _descend(loss, logits):
  tx = optax.adam(optax.cosine_decay_schedule(0.05, STEPS))

  def step(carry, _):
    logits, state = carry
    updates, state = tx.update(jax.grad(loss)(logits), state)
    return (optax.apply_updates(logits, updates), state), None

  run = jax.jit(lambda x: jax.lax.scan(step, (x, tx.init(x)), length=STEPS))
  return run(logits)[0][0]


def judge(rows) -> list[bool]:
  """The statements of SIGNATURE, in order."""
  raw = rows['raw reverse KL']
  share = raw['teacher_share']
  rest = ('stop-gradient', 'tail bucket', 'renormalised', 'full vocabulary')
  near = lambda value, target: abs(value / target - 1) < 0.02
  return [
    near(raw['mass'], share / math.e),
    near(raw['value'], -share / math.e),
    rows['raw forward KL']['mass'] > 0.99,
    all(near(rows[name]['mass'], share) for name in rest[:2]),
    raw['gradient_at_teacher'] > 1e-2
    and all(rows[name]['gradient_at_teacher'] < 1e-6 for name in rest),
  ]
