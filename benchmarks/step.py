"""Seconds of one on-policy distillation step, by phase. One JSON line.

  python benchmarks/step.py --student=DIR --teacher=DIR
  python benchmarks/step.py --student=DIR --teacher=DIR --batch=8 --prompt=128

The work of a step is fixed: --batch prompts of half of --prompt to --prompt
random tokens, one response each of exactly --new tokens (no stop token),
sampled at temperature 1 from the student (--top-p filters), scored by the
teacher, and one AdamW update on the exact full-vocabulary reverse KL, float32.
Student and teacher are Hugging Face folders of one vocabulary; random weights
will do. Times are medians over --steps after a warm-up; run it on an idle
machine.
"""

import argparse
import json
import os
import resource
import statistics
import time

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jopd import losses, sharding
from jopd.models import hf
from jopd.rollout.engine import make_generate
from jopd.rollout.stop_criteria import make_stops
from jopd.train.learner import make_gradients, make_learn, make_teach
from jopd.train.rollout_batch import RolloutBatch, TeacherInput
from jopd.train.stage import Aggregation
from jopd.train.state import init_state

PHASES = ('rollout', 'teacher', 'learner')


def main():
  """Runs the benchmark."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--student', required=True)
  parser.add_argument('--teacher', required=True)
  parser.add_argument('--batch', type=int, default=16)
  parser.add_argument('--prompt', type=int, default=32)
  parser.add_argument('--new', type=int, default=128)
  parser.add_argument('--steps', type=int, default=5)
  parser.add_argument('--chunk-tokens', type=int, default=128)
  parser.add_argument('--top-p', type=float, default=1.0)
  args = parser.parse_args()

  student, params = hf.load(args.student, dtype='float32')
  teacher, frozen = hf.load(args.teacher, dtype='float32')
  start = time.perf_counter()
  step, state = make_step(args, student, params, teacher, {'teacher': frozen})
  state, _ = step(state, 0)
  first = time.perf_counter() - start
  seconds = {name: [] for name in (*PHASES, 'step', 'cpu')}
  for i in range(1, args.steps + 1):
    cpu, before = time.process_time(), time.perf_counter()
    state, phases = step(state, i)
    phases['step'] = time.perf_counter() - before
    phases['cpu'] = time.process_time() - cpu
    for name, value in phases.items():
      seconds[name].append(value)
  median = {n: round(statistics.median(s), 4) for n, s in seconds.items()}
  tokens = args.batch * args.new
  print(
    json.dumps(
      dict(
        **{f'{name}_s': value for name, value in median.items()},
        rollout_tokens_per_s=round(tokens / median['rollout']),
        first_step_s=round(first, 2),
        peak_rss_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        shape=[args.batch, args.prompt, args.new, student.vocab_size],
        device=jax.devices()[0].device_kind,
        jax=jax.__version__,
      )
    )
  )


def make_step(args, student, params, teacher, frozen):
  """`step(state, i) -> (state, seconds by phase)`, and the first state."""
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-6))
  terms = {'opd': losses.Term(losses.divergence(losses.reverse_kl))}
  generate = make_generate(student, mesh, max_new_tokens=args.new)
  sampled = dict(stops=make_stops(()), top_p=args.top_p)
  teach = jax.jit(make_teach({'teacher': teacher}))
  gradients = make_gradients(
    student,
    {'teacher': teacher},
    lambda scalars: terms,
    aggregation=Aggregation(losses.token_mean, jnp.sum),
    chunk_tokens=args.chunk_tokens,
  )
  learn = jax.jit(make_learn(gradients, tx), donate_argnums=0)
  heads = {'teacher': teacher.head(frozen['teacher'])}
  rng = np.random.default_rng(0)

  def step(state, i):
    clock, seconds = time.perf_counter(), {}

    def lap(name, result):
      nonlocal clock
      jax.block_until_ready(result)
      now = time.perf_counter()
      seconds[name], clock = now - clock, now
      return result

    shape = (args.batch, args.prompt)
    prompt = rng.integers(0, student.vocab_size, shape).astype(np.int32)
    length = rng.integers(args.prompt // 2, args.prompt + 1, args.batch)
    length = length.astype(np.int32)
    key = jax.random.key(i)
    rollout = lap(
      'rollout',
      generate(state.params, prompt, length, key, **sampled),
    )
    steps = np.arange(args.new)
    batch = RolloutBatch(
      prompt=rollout.prompt,
      prompt_length=rollout.prompt_length,
      response=rollout.response,
      response_length=rollout.response_length,
      mask=steps[None, :] < rollout.response_length[:, None],
      end_reason=rollout.end_reason,
      row=losses.Row(),
      teachers={'teacher': TeacherInput(rollout.prompt, rollout.prompt_length)},
      sampler_logp=rollout.sampler_logp,
      rollout_logp=rollout.logp,
    )
    hidden = lap('teacher', teach(frozen, batch))['teacher']
    scored = batch.teachers['teacher']._replace(hidden=hidden)
    batch = batch._replace(teachers={'teacher': scored})
    state, _ = lap('learner', learn(state, heads, batch))
    return state, seconds

  return step, init_state(params, tx)


if __name__ == '__main__':
  main()
