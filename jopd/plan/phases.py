"""The programs of a stage, compiled from shapes, and what each will need."""

from collections.abc import Callable, Iterator
import dataclasses
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jopd import sharding
from jopd.models.api import Model
from jopd.models.decoder import make_model
from jopd.plan import flops, hlo, inputs
from jopd.rollout.sampler import advance, cache_sizes, prefill
from jopd.rollout.score import score
from jopd.rollout.slots import Plan
from jopd.train.phases import Phases
from jopd.train.stage import Run, Stage

DEPTHS = (2, 4)  # at which deeper models are measured where layers unroll


class Phase(NamedTuple):
  """One program of a step: what a device needs for it, and does in it.

  Attributes:
    name: 'prefill', 'decode' (one token in every slot), 'teacher', 'learner'.
    times: how often it runs in a step, if every response is as long as can be.
    memory: kind -> bytes of a device while it runs. 'held': state and teachers,
      which stay through the stage; 'inputs': what else it reads; 'results':
      what it leaves; 'temporaries': what is gone when it ends.
    flops: operations of matrix products, of all devices.
    useful: those of them that the mathematics asks for: of a forward pass, and
      twice as many of a backward pass, but nothing that is recomputed.
    least: bytes that a device must read: its share of weights and caches, once.
      None where these are few beside the activations.
    cost: of a device; see `hlo.cost`.
    seconds: that compiling took.
  """

  name: str
  times: int
  memory: dict[str, float]
  flops: float
  useful: float
  least: float | None
  cost: hlo.Cost
  seconds: float


class TooLarge(Exception):
  """The compiler finds no room: the name of a phase, and what it says."""


class _Compiled(NamedTuple):
  """A program that was compiled from shapes."""

  args: tuple
  traced: jax.stages.Traced
  compiled: jax.stages.Compiled
  seconds: float

  @property
  def results(self):
    """Shapes of what it returns, where the compiler puts them."""
    return inputs.place(self.traced.out_info, self.compiled.output_shardings)

  def phase(
    self, name, times, held, more, *, useful=None, least=None, turns=1, grown=0
  ) -> Phase:
    """What is known of it.

    Args:
      name, times, least: of the phase.
      held: bytes that stay, whether it reads them or not.
      more: what it reads beside them.
      useful: operations; all of them by default.
      turns: of its loops whose turns depend on the data.
      grown: bytes that are there for a moment, outside of the program.
    """
    memory = self.compiled.memory_analysis()
    operations = flops.count(self.traced, turns=turns)
    temporaries = (
      memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    )
    return Phase(
      name,
      times,
      dict(
        held=held,
        inputs=inputs.local_bytes(more),
        # Results that take the place of arguments need no more room.
        results=max(
          0.0, memory.output_size_in_bytes - memory.alias_size_in_bytes
        ),
        temporaries=float(max(temporaries, grown)),
      ),
      operations,
      operations if useful is None else useful,
      least,
      hlo.cost(self.compiled.as_text(), turns=turns),
      self.seconds,
    )


def measure(
  stage: Stage,
  run: Run,
  params: dict[str, dict],
  *,
  prompts: int,
  widths: dict[str, int],
  say: Callable[[str], None],
) -> Iterator[Phase]:
  """The phases of a stage, in their order.

  Args:
    stage: of the run.
    run: what its stages share, on devices that need not be here.
    params: model name -> shapes of its parameters.
    prompts: of a step.
    widths: most tokens of each model's prompt, by role; '' is the student's.
    say: takes a line of text for the person who waits.

  Raises: TooLarge, instead of the first phase that no device has room for.
  """
  state = inputs.state(stage, run, params)
  frozen = inputs.frozen(stage, run, params)
  busy = {stage.student, *stage.teachers.values()}
  others = [tree for name, tree in params.items() if name not in busy]
  held = inputs.local_bytes((state, frozen, others))

  def compiled(name, jitted, *args):
    start = time.perf_counter()
    traced = jitted.trace(*args)
    try:
      program = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
      if 'RESOURCE_EXHAUSTED' not in str(error):
        raise
      raise TooLarge(name, str(error).splitlines()[0][:200]) from error
    seconds = time.perf_counter() - start
    say(f'compiled {stage.name}: {name} in {seconds:.1f} s')
    return _Compiled(args, traced, program, seconds)

  where = jax.tree.map(lambda x: x.sharding, state)
  phases = Phases(stage, run, frozen, where)
  teachers = phases.teachers(state)
  if stage.source != 'dataset':
    role = stage.source
    name = {'student': stage.student, **stage.teachers}[role]
    policy = {'student': state.params, **teachers}[role]
    asked = inputs.prompts(stage, run, prompts, widths[''])
    yield from _rollout(stage, run, name, policy, asked, held, compiled)

  rows = prompts * stage.group_size // stage.updates
  batch = inputs.batch(stage, run, rows, widths)
  models = {r: run.models[name] for r, name in stage.teachers.items()}
  hidden = {}
  if models:
    program = compiled('teacher', phases.teacher, teachers, batch)
    yield program.phase('teacher', stage.updates, held, batch)
    hidden = program.results
  program = compiled('learner', phases.learner, state, frozen, hidden, batch)
  own = run.models[stage.student]
  tokens = batch.response.size
  # A forward pass and its head, and twice that backward; the teachers' heads.
  useful = 3 * (
    _scoring(own, state.params, batch) + _heads([own], state.params, tokens)
  ) + sum(_heads([models[r]], teachers[r], tokens) for r in models)
  size = min(
    run.max_response_tokens,
    max(1, stage.chunk_tokens * stage.micro_batches // rows),
  )
  yield program.phase(
    'learner',
    stage.updates,
    held,
    (hidden, batch),
    useful=useful,
    turns=-(-run.max_response_tokens // size),
  )


def _rollout(
  stage, run, name, policy, asked, held, compiled
) -> Iterator[Phase]:
  """Prefill, and one token of every slot when the cache is largest.

  Their layers are unrolled, so that compiling takes as long as a model is deep.
  A deep one is measured at two depths instead, from which the others follow,
  since its layers are alike.
  """
  model: Model = run.models[name]
  depth = model.config.layers
  dtype = jax.tree.leaves(policy)[0].dtype
  if depth <= DEPTHS[-1]:
    yield from _decoding(stage, run, model, policy, asked, held, compiled)
    return
  measured = []
  for layers in DEPTHS:
    config = dataclasses.replace(model.config, layers=layers)
    shallow = make_model(config, constrain=sharding.constrain_batch(run.mesh))
    shapes = jax.eval_shape(shallow.init, jax.random.key(0))
    where = sharding.param_shardings(run.mesh, shallow.axes, shapes)
    params = inputs.cast(inputs.place(shapes, where), dtype)
    label = lambda name, *args, n=layers: compiled(f'{name}, {n} layers', *args)
    found = _decoding(stage, run, shallow, params, asked, held, label)
    measured.append(list(found))
  few, many = DEPTHS
  more = (depth - few) / (many - few)
  for pair in zip(*measured, strict=True):
    yield _between(*pair, more)


def _between(few: Phase, many: Phase, more: float) -> Phase:
  """What a phase is `more` times as far from `few` as `many` is."""

  def line(a, b):
    if isinstance(a, dict):
      return {key: line(a.get(key, 0.0), b[key]) for key in b}
    return max(0.0, a + more * (b - a))

  return few._replace(
    memory=line(few.memory, many.memory),
    flops=line(few.flops, many.flops),
    useful=line(few.useful, many.useful),
    least=few.least and line(few.least, many.least),
    cost=hlo.Cost(*map(line, few.cost, many.cost)),
    seconds=few.seconds + many.seconds,
  )


def _decoding(
  stage, run, model: Model, policy, asked, held, compiled
) -> Iterator[Phase]:
  """The two phases of a rollout, as they are compiled."""
  shards = sharding.batch_parts(run.mesh)
  prompts, width = asked[0].shape
  rows = prompts * stage.group_size
  slots = min(stage.decoding['slots'] or rows, rows)
  longest = run.max_response_tokens
  plan = Plan(
    rows // shards, slots // shards, shards, stage.group_size, longest
  )
  sizes = cache_sizes(width, longest)

  def begin(params, prompt, prompt_length, how, limit, key, stops):
    key = jax.random.wrap_key_data(key)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))
    return prefill(
      model,
      plan,
      params,
      prompt,
      prompt_length,
      keys,
      how=how,
      stops=stops,
      limit=limit,
      cache_size=sizes[-1],
      vocab_size=run.vocab_size,
      dtype=stage.decoding['compute_dtype'],
      int8=stage.decoding['int8'],
    )

  first = compiled('prefill', jax.jit(begin), policy, *asked)
  yield first.phase('prefill', 1, held, asked)
  work, state = first.results
  token = jax.jit(
    lambda work, state: advance(model, plan, work, state), donate_argnums=1
  )
  then = compiled('decode', token, work, state)
  weights = dict(work.params)
  del weights['embed']  # of which a token reads a row; the head is apart
  cache = inputs.local_bytes(state.cache)
  yield then.phase(
    'decode',
    -(-rows * longest // slots),
    held,
    (work, state),
    least=inputs.local_bytes((weights, work.head)) + cache,
    # Where the cache grows, the one before it is still there.
    grown=cache * sizes[-2] / sizes[-1] if len(sizes) > 1 else 0,
  )


def _scoring(model: Model, params, batch) -> float:
  """Operations of a forward pass over prompts and responses."""
  run = jax.jit(lambda *args: score(model, *args))
  own = batch.prompt, batch.prompt_length, batch.response
  return flops.count(run.trace(params, *own))


def _heads(models, params, tokens: int) -> float:
  """Operations of heads over tokens."""
  shapes = (jax.eval_shape(model.head, params).shape for model in models)
  return sum(2.0 * tokens * rows * width for rows, width in shapes)
