"""Models that follow a script, so that every measured number is known.

The task is the running sum of two digits; 'a b' is answered with
'a s #### s', s = a + b modulo 10, in five tokens, the end of the turn included.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import tiny

from jopd import sharding
from jopd.data.batching import encode_batch
from jopd.data.tokenizer import builtin_tokenizer
from jopd.models.api import Model
from jopd.run import build
from jopd.train.stage import Run, Stage

TOKENIZER = builtin_tokenizer()
VOCAB = len(TOKENIZER)
START = TOKENIZER.convert_tokens_to_ids('<|im_start|>')
END = TOKENIZER.eos_token_id
MARK = TOKENIZER.encode(' ####')[0]
# Ids of the digits, the first in a text and those after a space.
FIRST = jnp.array([TOKENIZER.encode(str(d))[0] for d in range(10)])
LATER = jnp.array([TOKENIZER.encode(f' {d}')[0] for d in range(10)])
VALUE = jnp.full(VOCAB, -1).at[FIRST].set(jnp.arange(10))
VALUE = VALUE.at[LATER].set(jnp.arange(10))


class Turn(NamedTuple):
  """What a script reads at a position."""

  a: jax.Array  # the first digit of the user turn
  b: jax.Array
  hint: jax.Array  # the first digit of a system turn; -1 without one
  said: jax.Array  # the digit one token before the last, while there is one


def spread(*chances):
  """Log-probs with these (id, chance), and what is left on all ids alike."""
  p = jnp.full(VOCAB, (1 - sum(chance for _, chance in chances)) / VOCAB)
  for token, chance in chances:
    p = p.at[token].add(chance)
  return jnp.log(p)


def line(turn, step, total):
  """The id at a step of the answer that states a total."""
  ids = (FIRST[turn.a], LATER[total % 10], MARK, LATER[total % 10], END)
  return jnp.array(ids)[jnp.clip(step, 0, 4)]


def _solver(turn, step, p):
  """Right with chance p; else it states the next digit."""
  right, wrong = (line(turn, step, turn.a + turn.b + i) for i in (0, 1))
  return spread((right, p), (wrong, 0.99 - p))


def teacher(turn, step):
  """Solves everything, whatever has been said."""
  return _solver(turn, step, 0.97)


def student(turn, step):
  """Sure of sums that begin with a small digit, mostly wrong on the others."""
  return _solver(turn, step, jnp.where(turn.a < 5, 0.95, 0.3))


def stranger(turn, step):
  """Right, in a style of its own: the mark comes first."""
  ids = (MARK, LATER[(turn.a + turn.b) % 10], END, END, END)
  return spread((jnp.array(ids)[jnp.clip(step, 0, 4)], 0.98))


def gullible(turn, step):
  """Solves everything alone, but repeats what stands before the mark."""
  total = jnp.where(step == 3, turn.said, turn.a + turn.b)
  return spread((line(turn, step, total), 0.98))


def cold(turn, step):
  """Anything, and no end."""
  del turn, step
  return spread().at[END].set(-jnp.inf)


def obedient(turn, step):
  """States the digit of a system turn; without one, any digit."""
  digits = spread(*((LATER[d], 0.098) for d in range(10)))
  hinted, plain = (
    spread((line(turn, step, total), 0.98)) for total in (turn.hint, 0)
  )
  any_digit = jnp.where((step == 1) | (step == 3), digits, plain)
  return jnp.where(turn.hint < 0, any_digit, hinted)


SCRIPTS = (teacher, student, stranger, gullible, cold, obedient)


def params_of(script):
  """What makes `MODEL` follow a script."""
  return {'head': jnp.eye(VOCAB), 'script': jnp.float32(SCRIPTS.index(script))}


def _place(script, row, position):
  """Logits of what comes after a position, from what stands up to it."""
  slots = jnp.arange(len(row))
  seen = jnp.where(slots <= position, row, 0)
  value, turns = VALUE[seen], jnp.cumsum(seen == START)
  count = turns[-1]
  begin = jnp.max(jnp.where(seen == START, slots, 0)) + 2
  after = lambda turn, slot: jnp.min(
    jnp.where((value >= 0) & (turns == turn) & (slots > slot), slots, len(row))
  )
  at = lambda slot: jnp.take(value, slot, mode='fill', fill_value=-1)
  a = after(count - 1, 0)
  hint = jnp.where(count == 3, at(after(1, 0)), -1)
  turn = Turn(at(a), at(after(count - 1, a)), hint, at(position - 1))
  return jax.lax.switch(script, SCRIPTS, turn, position - begin)


def _apply(params, tokens, start=None, cache=None):
  """The logits, times the head, stand for hidden states."""
  if start is None:
    start = jnp.zeros(len(tokens), jnp.int32)
  position = start[:, None] + jnp.arange(tokens.shape[1])[None, :]
  if cache is not None:
    ((seen, values),) = cache
    rows = jnp.arange(len(tokens))[:, None]
    new = tokens.astype(seen.dtype)
    seen = seen.at[rows, 0, position, 0].set(new, mode='drop')
    cache, tokens = [(seen, values)], seen[:, 0, :, 0].astype(jnp.int32)
  script = params['script'].astype(jnp.int32)
  along = jax.vmap(_place, (None, None, 0))
  logits = jax.vmap(along, (None, 0, 0))(script, tokens, position)
  # A head has no use for -inf: times 0 it is NaN.
  return jnp.maximum(logits, -1e4), cache


MODEL = Model(
  config=None,
  init=lambda key: params_of(teacher),
  apply=_apply,
  head=lambda params: params['head'],
  init_cache=lambda batch, length, dtype: [
    (jnp.zeros((batch, 1, length, 1), dtype),) * 2
  ],
  axes={'head': (None, None), 'script': ()},
  vocab_size=VOCAB,
  unstack=lambda params: params,
)


class Case(NamedTuple):
  """A stage of the config of `tiny`, on the task of this module."""

  config: ConfigDict
  run: Run
  stage: Stage
  params: dict


@functools.cache
def _built():
  """The config, the run on one device, and the stage at its beginning."""
  config = tiny.get_config()
  config.stages = ('distil',)
  config.data = dict(name='running_sum', count=64, length=2)
  config.eval_data = dict(name='running_sum', count=8, length=2)
  config.max_prompt_tokens = 24
  config.max_response_tokens = 8
  built = build.build(config)
  (stage,) = built.stages
  mesh = sharding.make_mesh(devices=jax.devices()[:1])  # less to compile
  models = dict.fromkeys(config.models, MODEL)
  run = built.run._replace(models=models, mesh=mesh)
  return config, run, stage, stage.prompts.batches.get_state()


def case(learner, guide, context=None):
  """A case whose models follow scripts.

  Args:
    learner: script of the student.
    guide: script of the teacher.
    context: what the teacher reads, (Example) -> messages.
  """
  config, run, stage, beginning = _built()
  stage.prompts.batches.set_state(beginning)

  def read(prompts):
    batch = encode_batch(
      prompts.examples, TOKENIZER, max_prompt_tokens=24, context=context
    )
    return batch.prompt, batch.prompt_length

  place = lambda script: sharding.make_global_array(
    params_of(script), sharding.replicated(run.mesh)
  )
  return Case(
    config,
    run,
    stage._replace(
      teachers=stage.teachers._replace(
        contexts={'teacher': read} if context else {}
      )
    ),
    {'student': place(learner), 'teacher': place(guide)},
  )
