"""Measurements of models that their runs do not log."""

from collections.abc import Callable, Iterator

import jax
import numpy as np

from jopd import sharding
from jopd.data.batching import encode_batch
from jopd.data.examples import Example
from jopd.models import hf
from jopd.rollout.decode import make_policy
from jopd.rollout.engine import decode, make_generate
from jopd.rollout.stop_criteria import make_stops
from jopd.run import build
from jopd.run.components import make_examples
from jopd.train import steps
from jopd.train.rollout_batch import cut_to_buckets
from jopd.train.state import init_state, state_shardings
from jopd.train.teachers import freeze


def answers(
  folder: str, data: dict, *, temperature: float = 0.0
) -> Iterator[tuple[Example, str]]:
  """A model's answers to all examples of a source, by default greedy ones."""
  examples = make_examples(data)[:]
  tokenizer = hf.load_tokenizer(folder)
  prompts = encode_batch(examples, tokenizer, max_prompt_tokens=24)
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  model, params = hf.load(folder)
  stops = make_stops(
    hf.stop_ids(folder, tokenizer), strings=(), tokenizer=tokenizer
  )
  generate = make_generate(
    make_policy(model, vocab_size=len(tokenizer)), mesh, max_new_tokens=12
  )
  rollout = generate(
    params,
    prompts.prompt,
    prompts.prompt_length,
    jax.random.key(0),
    stops=stops,
    temperature=temperature,
  )
  yield from zip(
    examples, decode(tokenizer, jax.device_get(rollout)), strict=True
  )


def gradients(config, *, replicas: int) -> np.ndarray:
  """[replicas, parameters]: the first step's gradient, each on new rollouts.

  A gradient is what a step of plain descent at rate 1 takes away. Configs of
  one seed have the same prompts and rollouts, so their gradients can be
  compared one by one.

  Args:
    config: of `Lab.distilling`, with learning_rate=1.0, warmup_steps=0,
      lr_schedule='constant', max_grad_norm=0.0, optimizer=dict(name='sgd').
    replicas: how many.
  """
  run, [stage], params = build.build(config)
  frozen = freeze(stage, run, params)
  params = params['student']
  where = jax.tree.map(lambda p: p.sharding, params)
  shardings = state_shardings(run.mesh, where, params, stage.update.tx)
  programs = steps.make_programs(stage, run, shardings)
  start = jax.jit(
    lambda p: init_state(p, stage.update.tx), out_shardings=shardings
  )
  found = []
  for replica in range(replicas):
    state = start(jax.tree.map(lambda p: p.copy(), params))
    before = _flat(state.params)
    prompts = next(stage.prompts.batches)
    key = jax.random.fold_in(run.key, replica)
    how = stage.rollouts.sampling(0, {})
    batch, info = steps.rollout_step(
      stage, run, programs, frozen, state, prompts, key, how
    )
    batch, info = steps.reward_step(stage, run, prompts, batch, info)
    batch, info = steps.filter_step(stage, batch, info)
    batch, info = steps.context_step(stage, prompts, batch, info)
    batch = cut_to_buckets(batch, run.num_length_buckets)
    batch = steps.place(run, batch, 0)
    batch = steps.teacher_step(stage, programs, frozen, state, batch)
    scalars = stage.loss.scalars(0, {})
    state, _ = steps.update_step(
      stage, run, programs, frozen, state, batch, scalars
    )
    found.append(before - _flat(state.params))
  return np.stack(found)


def _flat(params) -> np.ndarray:
  leaves = jax.tree.leaves(jax.device_get(params))
  return np.concatenate([leaf.ravel() for leaf in leaves]).astype(np.float64)


def total_variance(found: np.ndarray) -> float:
  """The trace of the covariance of gradients, [replicas, parameters]."""
  return float(np.sum(np.var(found, axis=0, ddof=1)))


def cosine(one: np.ndarray, other: np.ndarray) -> float:
  """Between two mean gradients."""
  norms = np.linalg.norm(one) * np.linalg.norm(other)
  return float(one @ other / norms)


def share(examples, right: Callable[[Example, str], bool]) -> float:
  """The share of (example, answer) pairs of which `right` is true."""
  return float(np.mean([right(*pair) for pair in examples]))
