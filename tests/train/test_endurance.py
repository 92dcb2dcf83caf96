"""Many steps cost what one costs: nothing is compiled, nothing piles up."""

import json
import random

import jax
import pytest

from jopd.rewards import Reward
from jopd.train import pipeline

pytestmark = pytest.mark.slow


# Prompts of many lengths; responses end where they end. Kills: a shape or a
# number that reaches a program as itself, an operation outside of programs that
# compiles for each size, and arrays that a step leaves behind.
def test_steps_compile_nothing_and_leave_nothing(make_tiny, tmp_path):
  rng = random.Random(0)
  text = lambda: ' '.join(['7'] * rng.randint(1, 4))
  rows = [{'prompt': text(), 'answer': '7'} for _ in range(64)]
  data = tmp_path / 'rows.jsonl'
  data.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  built = make_tiny(
    **{
      'data': {'name': 'jsonl', 'path': str(data)},
      'stages': ('distil',),
      'distil.steps': 8,
      'checkpoint.every': 100,
    }
  )
  compiled, seen, lengths = [], [], set()

  def decode_logits(event, seconds, **about):
    if event.endswith('backend_compile_duration'):
      compiled.append(about)

  def look():
    seen.append((len(compiled), len(jax.live_arrays())))
    return 0

  def reward(response, example):
    lengths.add(len(example.messages[0]['content']))
    return Reward(0.0)

  jax.monitoring.register_event_duration_secs_listener(decode_logits)
  try:
    run = built.run._replace(should_stop=look, reward=reward)
    pipeline.train(run, built.stages, built.params, tmp_path / 'run')
  finally:
    jax.monitoring.unregister_event_duration_listener(decode_logits)
  assert len(lengths) > 2
  assert seen[0][0] < seen[1][0]  # the first step compiles
  assert len(set(seen[2:])) == 1, seen
