"""The chunked loss against the dense one and against its bare matrix products.

  python benchmarks/losses.py [--quick] [--json]

Value and gradients to hidden states and head, float32, of the full-vocabulary
reverse KL and, under 'top_k', of its form on the target's top 64 with a bucket.
The bare products are the four that no exact loss can do without: the logits of
both models, and from them the gradients to the student's hidden states and
head. Memory is what the compiled program holds besides arguments and results.
All are compiled once and run in turns in one process, so that the ratios mean
something on a busy machine.
"""

import argparse
import functools
import json
import statistics
import time

import jax
import jax.numpy as jnp

from jopd import losses

MATCHINGS = {
  'full': losses.divergence(losses.reverse_kl),
  'top_k': losses.divergence(
    losses.reverse_kl, support=functools.partial(losses.top_k, k=64)
  ),
}


def make_inputs(batch, length, width, vocab):
  keys = jax.random.split(jax.random.key(0), 5)
  hidden = jax.random.normal(keys[0], (batch, length, width))
  head = jax.random.normal(keys[1], (vocab, width)) / width**0.5
  teacher_hidden = hidden + 0.1 * jax.random.normal(keys[2], hidden.shape)
  teacher_head = head + 0.01 * jax.random.normal(keys[3], head.shape)
  token = jax.random.randint(keys[4], (batch, length), 0, vocab)
  return hidden, head, teacher_hidden, teacher_head, token


def chunked(terms, chunk_tokens, hidden, head, other, other_head, token):
  return losses.distill_loss_chunked(
    hidden,
    head,
    {'teacher': (other, other_head)},
    token,
    jnp.zeros(token.shape),
    terms,
    mask=jnp.ones(token.shape, bool),
    count=token.size,
    chunk_tokens=chunk_tokens,
    with_stats=False,
  )[0]


def dense(terms, hidden, head, other, other_head, token):
  batch = losses.TokenBatch(
    student_logp=losses.log_probs(hidden @ head.T),
    logps={'teacher': losses.log_probs(other @ other_head.T)},
    token=token,
    sampler_logp=jnp.zeros(token.shape),
  )
  mask = jnp.ones(token.shape, bool)
  return losses.distill_loss(batch, terms, mask=mask, count=token.size)


def bare_matmul(hidden, head, other, other_head, token):
  """The four products that no exact loss can do without."""
  del token
  hidden, other = (x.reshape(-1, x.shape[-1]) for x in (hidden, other))
  logits, other_logits = hidden @ head.T, other @ other_head.T
  return other_logits @ head, logits.T @ hidden


def compile_all(chunk_tokens, inputs):
  """Name -> compiled function, of all that is compared."""
  gradients = functools.partial(jax.value_and_grad, argnums=(0, 1))
  functions = {'bare_matmul': bare_matmul}
  for name, objective in MATCHINGS.items():
    terms = {'loss': losses.Term(objective)}
    functions[name] = gradients(functools.partial(chunked, terms, chunk_tokens))
    functions[f'{name}_dense'] = gradients(functools.partial(dense, terms))
  return {n: jax.jit(f).lower(*inputs).compile() for n, f in functions.items()}


def time_all(compiled, inputs, rounds):
  """Name -> median seconds; in turns, so that a slow minute slows all alike."""
  seconds = {name: [] for name in compiled}
  for _ in range(rounds + 1):
    for name, function in compiled.items():
      start = time.perf_counter()
      jax.block_until_ready(function(*inputs))
      seconds[name].append(time.perf_counter() - start)
  return {n: statistics.median(x[1:]) for n, x in seconds.items()}


def study(batch, length, width, vocab, chunk_tokens, rounds):
  inputs = make_inputs(batch, length, width, vocab)
  compiled = compile_all(chunk_tokens, inputs)
  seconds = time_all(compiled, inputs, rounds)
  mib = {
    name: function.memory_analysis().temp_size_in_bytes / 2**20
    for name, function in compiled.items()
  }

  def ratios(name):
    return {
      'memory_vs_dense': round(mib[name] / mib[f'{name}_dense'], 3),
      'time_vs_bare_matmul': round(seconds[name] / seconds['bare_matmul'], 3),
      'time_vs_dense': round(seconds[name] / seconds[f'{name}_dense'], 3),
      'seconds': round(seconds[name], 4),
      'temp_mib': round(mib[name], 1),
    }

  return {
    'device': jax.devices()[0].device_kind,
    'jax': jax.__version__,
    'tokens': batch * length,
    'width': width,
    'vocab': vocab,
    'chunk_tokens': chunk_tokens,
    **ratios('full'),
    'top_k': ratios('top_k'),
    'top_k_vs_full': round(seconds['top_k'] / seconds['full'], 3),
  }


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    '--quick', action='store_true', help='one width, one round'
  )
  parser.add_argument('--json', action='store_true', help='a line of JSON each')
  args = parser.parse_args()
  for width in (256,) if args.quick else (256, 1024):
    result = study(8, 256, width, 151_936, 256, rounds=1 if args.quick else 3)
    print(json.dumps(result, indent=None if args.json else 2), flush=True)


if __name__ == '__main__':
  main()
