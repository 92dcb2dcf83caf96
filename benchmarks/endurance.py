"""A long run of minimal steps: what is compiled, and how memory goes.

  python benchmarks/endurance.py --steps=2000

A tiny student learns from a tiny teacher on its own rollouts; prompts have two
to ten numbers, and batches are cut to one of two sizes. Compilations are those
that JAX counts, so that an operation outside of the phases would be seen, too.
Memory is what the system holds for the process, in MiB, at a tenth of the steps
and at the end; `arrays` are those that JAX keeps alive. One JSON line.
"""

import argparse
import json
import os
import pathlib
import random
import tempfile

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ['HF_HUB_OFFLINE'] = '1'

import jax

from jopd.run import build
from jopd.run import config as configs
from jopd.train import pipeline

COMPILED = 'backend_compile_duration'
SIZE = dict(
  model_type='qwen3',
  hidden_size=16,
  intermediate_size=32,
  num_hidden_layers=1,
  num_attention_heads=2,
  num_key_value_heads=1,
  head_dim=8,
  tie_word_embeddings=True,
)


def get_config(steps, data):
  """Distillation on the student's own responses, as small as it goes."""
  config = configs.base()
  config.models.teacher = config.models.student = SIZE
  config.tokenizer = 'builtin'
  config.data = dict(name='jsonl', path=str(data))
  config.eval_data = dict(name='running_sum', count=8, split='test')
  config.max_prompt_tokens = config.max_response_tokens = 32
  config.num_length_buckets = 2
  config.eval.prompts = config.eval.batch_size = 8
  config.eval.samples = 0
  config.mesh.data = 1
  config.checkpoint.every = 500
  config.stages = ('distil',)
  config.distil = configs.stage(
    teachers=dict(teacher='teacher'),
    steps=steps,
    batch_size=2,
    loss=dict(match=dict(objective='divergence', divergence='reverse_kl')),
  )
  return config


def main():
  """Runs the benchmark."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--steps', type=int, default=2000)
  args = parser.parse_args()
  compiled, seen = [], []
  jax.monitoring.register_event_duration_secs_listener(
    lambda name, *_, **__: compiled.append(name) if COMPILED in name else None
  )

  def look():
    """Asked before each step whether to stop."""
    seen.append((resident(), len(jax.live_arrays()), len(compiled)))
    return 0

  with tempfile.TemporaryDirectory() as folder:
    data = pathlib.Path(folder, 'rows.jsonl')
    rng = random.Random(0)
    numbers = lambda: ' '.join(
      str(rng.randrange(10)) for _ in range(rng.randint(2, 10))
    )
    rows = [{'prompt': numbers(), 'answer': '0'} for _ in range(512)]
    data.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    built = build.build(get_config(args.steps, data))
    run = built.run._replace(should_stop=look)
    pipeline.train(run, built.stages, built.params, pathlib.Path(folder, 'run'))
  names = ('mebibytes', 'arrays', 'compilations')
  places = {'at_a_tenth': seen[args.steps // 10], 'at_the_end': seen[-1]}
  found = {p: dict(zip(names, x, strict=True)) for p, x in places.items()}
  print(json.dumps({'steps': args.steps, **found}))


def resident():
  """MiB that the process has in memory now."""
  pages = int(pathlib.Path('/proc/self/statm').read_text().split()[1])
  return round(pages * os.sysconf('SC_PAGE_SIZE') / 2**20, 1)


if __name__ == '__main__':
  main()
