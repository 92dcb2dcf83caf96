"""The chunked loss against the dense one and against its bare matrix products.

  python benchmarks/losses.py [--quick] [--json]

Value and gradients to hidden states and head, float32, of the full-vocabulary
reverse KL and of its top-k form with a bucket. Everything is compiled once and
timed in one process, so that the ratios mean something on a busy machine.
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
  'reverse_kl_full': losses.matching(losses.reverse_kl),
  'reverse_kl_top_k_bucket': losses.matching(
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


def measure(function, inputs, repeats):
  """Median seconds, and MiB of temporaries, of the compiled function."""
  compiled = jax.jit(function).lower(*inputs).compile()
  jax.block_until_ready(compiled(*inputs))
  seconds = []
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready(compiled(*inputs))
    seconds.append(time.perf_counter() - start)
  memory = compiled.memory_analysis().temp_size_in_bytes / 2**20
  return statistics.median(seconds), memory


def run(quick):
  sizes = (4, 32, 64, 4096) if quick else (8, 128, 256, 32768)
  chunk_tokens = 16 if quick else 128
  repeats = 3 if quick else 5
  inputs = make_inputs(*sizes)
  gradients = functools.partial(jax.value_and_grad, argnums=(0, 1))
  matmul_seconds, _ = measure(bare_matmul, inputs, repeats)
  results = {}
  for name, objective in MATCHINGS.items():
    terms = {'loss': losses.Term(objective)}
    seconds, memory = measure(
      gradients(functools.partial(chunked, terms, chunk_tokens)),
      inputs,
      repeats,
    )
    dense_seconds, dense_memory = measure(
      gradients(functools.partial(dense, terms)), inputs, repeats
    )
    results[name] = {
      'memory_vs_dense': round(memory / dense_memory, 3),
      'time_vs_dense': round(seconds / dense_seconds, 3),
      'time_vs_bare_matmul': round(seconds / matmul_seconds, 3),
      'seconds': round(seconds, 4),
      'temp_mib': round(memory, 1),
    }
  batch, length, width, vocab = sizes
  setting = {
    'device': jax.devices()[0].device_kind,
    'jax': jax.__version__,
    'batch': batch,
    'length': length,
    'width': width,
    'vocab': vocab,
    'chunk_tokens': chunk_tokens,
  }
  return setting | results


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--quick', action='store_true', help='small, seconds')
  parser.add_argument('--json', action='store_true', help='one line of JSON')
  args = parser.parse_args()
  result = run(args.quick)
  print(json.dumps(result, indent=None if args.json else 2))


if __name__ == '__main__':
  main()
