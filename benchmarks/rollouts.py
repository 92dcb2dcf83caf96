"""Rollouts against other samplers and against their bare matrix products.

  python benchmarks/rollouts.py [--quick] [--json] [--rounds=N]
      [--student=FOLDER] [--large-student=FOLDER]

Everything is compiled once and runs in turns in one process, so that the
ratios mean something on a busy machine; they are ratios of medians, of wall
time and, under 'cpu', of the CPU seconds of the process. Peers sample from the
same weights, float32, and are null where they are not installed.

  vs_transformers       seconds of transformers' `generate` / ours; of one
                        thread or all, whichever takes less
  vs_tunix              seconds of Tunix's sampler / ours
  vs_matmul_floor       our seconds / those of the products with the weights
                        alone: no attention, no norms, no draw
  top_p_overhead        seconds with top-p 0.95 / without; random weights make
                        the nucleus nearly the whole vocabulary
  continuous_vs_static  seconds of four batches of 16 / of 64 rows through 16
                        slots, their limits drawn from a long-tailed law
  recompilations        by a second call with other settings, limits and key
  mismatch              |log p of the sampler - log p of the learner in float32|
                        of the sampled tokens, mean and largest, nats; for
                        rollouts in float32, bfloat16 and int8

Cases: 'small', 16 prompts x (32 + 128) tokens at V = 4,096, gives the ratios
of the first line; 'large', 8 x (128 + 128) at V = 151,936, is left out by
--quick; 'long_tailed' has the sizes of the small one. Real prompt lengths lie
between half of the slots and all of them; no row stops before its limit.
The models are Hugging Face folders, or random ones of Qwen3's shape.
"""

import argparse
from functools import partial
import heapq
import json
import math
import os
import statistics
import tempfile
import time
from typing import NamedTuple

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('HF_HUB_OFFLINE', '1')

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import peers

from jopd import sharding
from jopd.models import hf
from jopd.rollout.decode import make_policy as policy_of
from jopd.rollout.engine import make_generate
from jopd.rollout.score import score
from jopd.rollout.stop_criteria import make_stops

TOP_P = 0.95
SLOTS = 16


class Case(NamedTuple):
  """Sizes of a run."""

  batch: int
  prompt: int
  new: int
  vocab: int


SMALL = Case(batch=16, prompt=32, new=128, vocab=4_096)
LARGE = Case(batch=8, prompt=128, new=128, vocab=151_936)
LONG_TAILED = SMALL._replace(batch=4 * SLOTS)


def make_policy(folder, vocab):
  """The model of a folder, or a random one, and its parameters."""
  if folder:
    model, params = hf.load(folder, dtype='float32')
    if model.vocab_size != vocab:
      raise SystemExit(f'{folder}: V = {model.vocab_size}, expected {vocab}')
    return model, params
  model = hf.fresh(
    dict(
      model_type='qwen3',
      vocab_size=vocab,
      hidden_size=256,
      num_hidden_layers=4,
      num_attention_heads=8,
      num_key_value_heads=4,
      head_dim=32,
      intermediate_size=768,
      rope_theta=1_000_000,
      tie_word_embeddings=True,
    )
  )
  return model, jax.jit(model.init)(jax.random.key(0))


def make_prompts(case):
  """Random tokens [B, P] and lengths [B]; one prompt fills its slots."""
  rng = np.random.default_rng(0)
  prompt = rng.integers(2, case.vocab, (case.batch, case.prompt))
  length = rng.integers(case.prompt // 2, case.prompt + 1, case.batch)
  length[0] = case.prompt
  return prompt.astype(np.int32), length.astype(np.int32)


def make_sampler(model, case, **options):
  """`generate` on one device, where nothing stops a row."""
  generate = make_generate(
    model,
    sharding.make_mesh(devices=jax.devices()[:1]),
    max_new_tokens=case.new,
    **options,
  )
  return partial(generate, stops=make_stops(()))


def bare_products(model, params, case):
  """The products with the weights: over the prompts, then token by token."""

  def through(layers, x):
    for layer in layers:
      attention, mlp = layer['attention'], layer['mlp']
      q, k, v = (jnp.einsum('bd,dhn->bhn', x, attention[n]) for n in 'qkv')
      mixed = q * jnp.repeat(k * v, q.shape[1] // k.shape[1], axis=1)
      x += jnp.einsum('bhn,hnd->bd', mixed, attention['o'])
      x += ((x @ mlp['gate']) * (x @ mlp['up'])) @ mlp['down']
    return x

  def run(params, prompt, response):
    params = model.unstack(params)
    layers, embed = params['layers'], params['embed']
    logits = lambda x: jnp.einsum('bd,vd->bv', x, model.head(params))
    prefilled = through(layers, embed[prompt.reshape(-1)])
    last = prefilled.reshape(*prompt.shape, -1)[:, -1]
    # Each step starts from a token known beforehand, so that nothing but its
    # products lies between it and its logits.
    step = lambda t, _: logits(through(layers, embed[response[t]]))
    return lax.fori_loop(0, case.new - 1, step, logits(last)), prefilled

  program = jax.jit(run)
  prompt, _ = make_prompts(case)
  response = np.resize(prompt, (case.new - 1, case.batch))
  return lambda: jax.block_until_ready(program(params, prompt, response))


def time_all(functions, rounds):
  """Name -> median (wall, CPU) seconds; in turns, after one that warms up."""
  seconds = {name: [] for name in functions}
  for _ in range(rounds + 1):
    for name, function in functions.items():
      wall, cpu = time.perf_counter(), time.process_time()
      function()
      now = time.perf_counter() - wall, time.process_time() - cpu
      seconds[name].append(now)
  return {
    name: tuple(map(statistics.median, zip(*laps[1:], strict=True)))
    for name, laps in seconds.items()
  }


def report(seconds, pairs):
  """Ratios of (wall, CPU) seconds by name, None where one was not run."""

  def best(name, clock):
    variants = [n for n in seconds if n.split(':')[0] == name]
    return min((seconds[n][clock] for n in variants), default=math.nan)

  def ratios(clock):
    found = {
      name: best(over, clock) / best(under, clock)
      for name, (over, under) in pairs.items()
    }
    return {n: None if math.isnan(x) else round(x, 3) for n, x in found.items()}

  rounded = lambda clock: {n: round(s[clock], 4) for n, s in seconds.items()}
  return {
    **ratios(0),
    'cpu': ratios(1),
    'seconds': rounded(0),
    'cpu_seconds': rounded(1),
  }


def study(model, params, case, rounds):
  """One batch of rows that take all steps, against everything else."""
  generate, key = make_sampler(model, case), jax.random.key(0)
  prompts = make_prompts(case)
  ours = lambda **settings: (
    lambda: jax.device_get(generate(params, *prompts, key, **settings))
  )
  with tempfile.TemporaryDirectory() as folder:
    work = f'{folder}/policy', *prompts, case.new
    hf.save(work[0], model, params)
    functions = {
      'ours': ours(),
      'top_p': ours(top_p=TOP_P),
      'matmul_floor': bare_products(model, params, case),
      **peers.transformers_generate(*work),
      **peers.tunix_sampler(*work),
    }
    seconds = time_all(functions, rounds)
  pairs = {
    'vs_transformers': ('transformers', 'ours'),
    'vs_tunix': ('tunix', 'ours'),
    'vs_matmul_floor': ('ours', 'matmul_floor'),
    'top_p_overhead': ('top_p', 'ours'),
  }
  tokens = case.batch * case.new
  return {
    **report(seconds, pairs),
    'tokens_per_s': {n: round(tokens / s[0]) for n, s in seconds.items()},
  }


def study_long_tail(model, params, rounds):
  """Rows of very different lengths, continuous batching against batches."""
  case = LONG_TAILED
  rng = np.random.default_rng(0)
  limit = rng.lognormal(np.log(24), 1.0, case.batch)
  limit = np.clip(limit, 1, case.new).astype(np.int32)
  prompt, length = make_prompts(case)
  key = jax.random.key(0)
  refill, batch = (
    make_sampler(model, case, max_num_seqs=n) for n in (SLOTS, None)
  )
  parts = [slice(i, i + SLOTS) for i in range(0, case.batch, SLOTS)]

  def continuous():
    return jax.device_get(
      refill(params, prompt, length, key, max_new_tokens=limit)
    )

  def static():
    for at in parts:
      jax.device_get(
        batch(params, prompt[at], length[at], key, max_new_tokens=limit[at])
      )

  functions = {'continuous': continuous, 'static': static}
  pairs = {'continuous_vs_static': ('static', 'continuous')}
  # What it could be if a refill were free: each row to the first free slot.
  slots = [0] * SLOTS
  for n in limit:
    heapq.heapreplace(slots, slots[0] + int(n))
  longest = [int(limit[at].max()) for at in parts]
  tokens = int(limit.sum())
  return {
    **report(time_all(functions, rounds), pairs),
    'occupancy': {
      'continuous': round(tokens / int(continuous().slot_steps), 3),
      'continuous_at_best': round(tokens / SLOTS / max(slots), 3),
      'static': round(tokens / SLOTS / sum(longest), 3),
    },
    'tokens': tokens,
    'median_limit': float(np.median(limit)),
  }


def measure_mismatch(model, params, case):
  """How far coarser rollouts are from a learner in float32, by precision."""
  prompts = make_prompts(case)

  @jax.jit
  def learner(params, rollout):
    hidden = score(
      model, params, rollout.prompt, rollout.prompt_length, rollout.response
    )
    logits = jnp.einsum('btd,vd->btv', hidden, model.head(params))
    logp = jax.nn.log_softmax(logits)
    return jnp.take_along_axis(logp, rollout.response[..., None], -1)[..., 0]

  found = {}
  for name, options in {
    'float32': {},
    'bfloat16': dict(dtype=jnp.bfloat16),
    'int8': dict(int8=True),
  }.items():
    generate = make_sampler(policy_of(model, **options), case)
    rollout = generate(params, *prompts, jax.random.key(0))
    gap = np.abs(np.asarray(rollout.logp - learner(params, rollout)))
    found[name] = dict(mean=float(gap.mean()), largest=float(gap.max()))
  return found


def count_recompilations(model, params, case):
  """Compilations by a second call that differs in everything but shapes."""
  generate = make_sampler(model, case).func
  prompt, length = make_prompts(case)
  stops = make_stops(())
  generate(params, prompt, length, jax.random.key(0), stops=stops)
  before = generate.program.compilations
  generate(
    params,
    prompt[::-1],
    length[::-1],
    jax.random.key(1),
    stops=make_stops((2, 3)),
    max_new_tokens=np.arange(case.batch) + 1,
    temperature=0.7,
    top_k=20,
    top_p=0.9,
    min_p=0.05,
  )
  return generate.program.compilations - before


def main():
  """Runs the benchmark."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--quick', action='store_true', help='no large case')
  parser.add_argument('--json', action='store_true', help='on one line')
  parser.add_argument('--rounds', type=int, help='7, or 3 with --quick')
  parser.add_argument('--student', help='folder; V = 4,096')
  parser.add_argument('--large-student', help='folder; V = 151,936')
  args = parser.parse_args()
  rounds = args.rounds or (3 if args.quick else 7)

  policy = make_policy(args.student, SMALL.vocab)
  cases = {
    'small': study(*policy, SMALL, rounds),
    'long_tailed': study_long_tail(*policy, rounds),
  }
  recompilations = count_recompilations(*policy, SMALL)
  mismatch = measure_mismatch(*policy, SMALL)
  if not args.quick:
    policy = make_policy(args.large_student, LARGE.vocab)
    cases['large'] = study(*policy, LARGE, rounds)
  cpu = cases['small']['cpu'] | cases['long_tailed']['cpu']
  wall = cases['small'] | cases['long_tailed']
  result = {
    **{name: wall[name] for name in cpu},
    'recompilations': recompilations,
    'mismatch': mismatch,
    'cpu': cpu,
    'cases': cases,
    'device': jax.devices()[0].device_kind,
    'jax': jax.__version__,
    'load': os.getloadavg()[0],
  }
  print(json.dumps(result, indent=None if args.json else 2))


if __name__ == '__main__':
  main()
