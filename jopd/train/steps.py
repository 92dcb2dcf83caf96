"""The parts of a training step, in their order: from prompts to an update."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
import logging
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jopd import sharding
from jopd.compilation import Program
from jopd.data.batching import PromptBatch
from jopd.losses import Row, group_reward_stats, rows_where
from jopd.models import lora
from jopd.rewards import Response
from jopd.rollout.continuous_batching import STOP
from jopd.rollout.engine import decode
from jopd.rollout.score import score
from jopd.rollout.teacher_mixing import mix_policies
from jopd.train.learner import (
  cast,
  make_gradients,
  make_learn,
  make_teach,
  split,
)
from jopd.train.random_streams import source_key
from jopd.train.rollout_batch import (
  RolloutBatch,
  RolloutInfo,
  TeacherInput,
  interleave,
)
from jopd.train.stage import Run, Stage
from jopd.train.state import TrainState
from jopd.train.teachers import Frozen, computes, put_in

_log = logging.getLogger(__name__)


class Programs(NamedTuple):
  """The compiled programs of a stage.

  Attributes:
    samplers: source -> `generate` of `rollout.engine.make_generate`.
    teach: of `learner.make_teach`.
    learn: of `learner.make_learn`; consumes the state.
    gradients: its first half, not compiled.
    merge: dtype -> (base, adapters) -> all parameters of the student; empty
      where the student has no adapters.
  """

  samplers: Mapping[str, Callable]
  teach: Program
  learn: Program
  gradients: Callable
  merge: Mapping[jnp.dtype, Program]


def make_programs(stage: Stage, run: Run, shardings: TrainState) -> Programs:
  """The programs of a stage; each compiles when it meets a new shape.

  Args:
    stage: which decides every function.
    run: what all stages share.
    shardings: of the train state.
  """
  student = run.models[stage.student.model]
  teachers = {r: run.models[n] for r, n in stage.teachers.models.items()}
  update, adapters = stage.update, stage.student.lora
  program = partial(Program, clock=run.clock)
  split_into = dict(
    parts=update.gradient_accumulation_steps, rows_together=update.rows_together
  )
  gradients = make_gradients(
    student,
    teachers,
    stage.loss.terms,
    aggregation=stage.loss.aggregation,
    # On its own prefixes, if it writes some of a group; else they are mixed.
    stats_rows=partial(rows_where, sources=(0,))
    if stage.rollouts.mixed
    else None,
    temperature=stage.loss.temperature,
    compute_dtype=run.compute_dtype,
    chunk_tokens=stage.loss.chunk_tokens,
    vocab_size=run.vocab_size,
    gather=sharding.gather_width(run.mesh),
    attach=adapters and partial(lora.attach, lora=adapters),
    **split_into,
  )
  return Programs(
    samplers=_samplers(stage, run, {'student': student, **teachers}),
    teach=program(
      f'{stage.name}: teacher',
      make_teach(
        teachers,
        compute_dtype=computes(run, stage.teachers.dtype),
        **split_into,
      ),
    ),
    learn=program(
      f'{stage.name}: learner',
      make_learn(
        gradients,
        update.tx,
        teacher_sync=stage.teachers.sync,
        grad_norm_spike=update.grad_norm_spike,
      ),
      donate_argnums=0,
      # Without them the compiler may move parameters between steps.
      out_shardings=(shardings, sharding.replicated(run.mesh)),
    ),
    gradients=gradients,
    merge={
      dtype: program(
        f'{stage.name}: merging in {dtype.name}',
        lambda base, own, dtype=dtype: lora.merge(
          lora.attach(base, own, adapters), dtype
        ),
        out_shardings=sharding.param_shardings(
          run.mesh,
          student.axes,
          jax.eval_shape(student.init, jax.random.key(0)),
        ),
      )
      for dtype in {jnp.dtype(jnp.float32), jnp.dtype(run.compute_dtype)}
      if adapters
    },
  )


def _samplers(stage: Stage, run: Run, models) -> dict[str, Callable]:
  """Source -> generate, of all sources that are models."""
  decoding = dict(stage.rollouts.decoding)
  max_num_seqs = decoding.pop('max_num_seqs')
  names = [name for name in stage.rollouts.sources if name != 'dataset']
  policies = {n: run.make_policy(models[n], **decoding) for n in names}
  for role, mix in stage.rollouts.mixing.items():
    teacher = run.make_policy(models[role], **decoding)
    policies['student'] = mix_policies(policies['student'], teacher, mix)
  suffix = lambda name: f' of {name}' if len(names) > 1 else ''
  return {
    name: run.make_generate(
      policies[name],
      f'{stage.name}: rollout{suffix(name)}',
      group_size=stage.rollouts.sources[name],
      max_num_seqs=max_num_seqs,
    )
    for name in names
  }


def student_params(
  programs: Programs, frozen: Frozen, state: TrainState, dtype=jnp.float32
) -> dict:
  """All parameters of the student now, adapters added to their matrices.

  Without adapters those of the state, float32 whatever the dtype.
  """
  if frozen.base is None:
    return state.params
  return programs.merge[jnp.dtype(dtype)](frozen.base, state.params)


def teacher_params(
  stage: Stage, frozen: Frozen, state: TrainState
) -> dict[str, dict]:
  """Role -> parameters of that teacher now, on the devices."""
  teachers = frozen.teachers
  if stage.teachers.memory:
    teachers = put_in(teachers, 'device')
  return teachers | state.teachers


def rollout_step(
  stage: Stage,
  run: Run,
  programs: Programs,
  frozen: Frozen,
  state: TrainState,
  prompts: PromptBatch,
  key: jax.Array,
  settings: Mapping[str, float | int],
  while_sampling: Callable[[], None] = lambda: None,
) -> tuple[RolloutBatch, RolloutInfo]:
  """The responses to a batch of prompts, on the host.

  Args:
    stage, run, programs, frozen: of the stage.
    state: of the student and the synced teachers that write.
    prompts: b of them.
    key: of the step.
    settings: of the sampler, from `Rollouts.sampling`.
    while_sampling: called when the programs run and before they are waited for.

  Returns:
    The batch, without rewards and what teachers read; and what the host knows.
  """
  writers, sources = stage.rollouts.draw(key), list(stage.rollouts.sources)
  running = {}
  for name in dict.fromkeys(writers):
    if name == 'dataset':
      continue
    if name == 'student':
      params = student_params(programs, frozen, state, run.compute_dtype)
      for role in stage.rollouts.mixing:
        params = params, teacher_params(stage, frozen, state)[role]
      prompt = prompts.prompt, prompts.prompt_length
    else:
      params = teacher_params(stage, frozen, state)[name]
      prompt = _teacher_prompt(stage, name, prompts)
    running[name] = programs.samplers[name](
      params, *prompt, source_key(key, sources.index(name)), **settings
    )
  while_sampling()
  parts, slot_steps = {}, 0
  for name in dict.fromkeys(writers):
    if name == 'dataset':
      nothing = np.zeros(prompts.response.shape, np.float32)
      parts[name] = dict(
        response=prompts.response,
        response_length=prompts.response_length,
        sampler_logp=nothing,
        rollout_logp=nothing,
        end_reason=np.full_like(prompts.response_length, STOP),
      )
    else:
      rollout = sharding.local_rows(running.pop(name))
      slot_steps += int(rollout.slot_steps)
      parts[name] = dict(
        response=rollout.response,
        response_length=rollout.response_length,
        sampler_logp=rollout.sampler_logp,
        rollout_logp=rollout.logp,
        end_reason=rollout.end_reason,
      )
  fields = interleave(writers, parts)
  if 'student' not in writers:
    fields['rollout_logp'] = None
  if set(writers) == {'dataset'}:
    fields['sampler_logp'] = None
  size, columns = len(writers), np.arange(fields['response'].shape[1])
  mask = columns[None, :] < fields['response_length'][:, None]
  mask &= ~np.isin(fields['response'], stage.rollouts.masked_ids)
  domains = {name: i for i, name in enumerate(stage.prompts.domains)}
  # A group's number is that of no other, on any host.
  groups = len(prompts.examples) * jax.process_index()
  groups += np.arange(len(prompts.examples), dtype=np.int32)
  batch = RolloutBatch(
    prompt=np.repeat(prompts.prompt, size, axis=0),
    prompt_length=np.repeat(prompts.prompt_length, size),
    mask=mask,
    row=Row(
      group=np.repeat(groups, size).astype(np.int32),
      source=np.tile(
        np.int32([sources.index(name) for name in writers]), len(groups)
      ),
      domain=np.repeat(
        np.int32([domains.get(x.domain, -1) for x in prompts.examples]), size
      ),
    ),
    **fields,
  )
  return batch, RolloutInfo(writers, slot_steps)


def reward_step(
  stage: Stage,
  run: Run,
  prompts: PromptBatch,
  batch: RolloutBatch,
  info: RolloutInfo,
) -> tuple[RolloutBatch, RolloutInfo]:
  """The batch with rewards, where its responses were sampled.

  Rewards enter the batch where terms read them; `info` always has them.
  """
  if set(info.writers) == {'dataset'}:
    return batch, info
  repeat = lambda values: [x for x in values for _ in info.writers]
  responses = [
    Response(text, ids[:length], prompt, 'stop' if end == STOP else 'length')
    for text, ids, length, prompt, end in zip(
      decode(run.tokenizer, batch),
      batch.response,
      batch.response_length,
      repeat(prompts.messages),
      batch.end_reason,
      strict=True,
    )
  ]
  rewards = list(map(run.reward, responses, repeat(prompts.examples)))
  info = info._replace(responses=responses, rewards=rewards)
  if stage.loss.reads.reward:
    stats = group_reward_stats(jnp.asarray(info.reward_values()))
    known = {n: x for n, x in stats._asdict().items() if x is not None}
    batch = batch._replace(row=batch.row._replace(**jax.device_get(known)))
  return batch, info


def filter_step(
  stage: Stage, batch: RolloutBatch, info: RolloutInfo
) -> tuple[RolloutBatch, RolloutInfo]:
  """The batch without a token of the responses that are not kept."""
  groups = (-1, len(info.writers))
  kept = stage.rollouts.filter(
    info.reward_values(),
    batch.response_length.reshape(groups),
    batch.end_reason.reshape(groups),
  )
  mask = batch.mask & kept.reshape(-1, 1)
  return batch._replace(mask=mask), info._replace(kept=kept)


def context_step(
  stage: Stage, prompts: PromptBatch, batch: RolloutBatch, info: RolloutInfo
) -> tuple[RolloutBatch, RolloutInfo]:
  """The batch with what each teacher reads before the responses."""
  inputs, has_context = {}, {}
  for role in stage.teachers.models:
    context = stage.teachers.rollout_contexts.get(role)
    if context and info.rewards:
      prompt, length, has_context[role] = context(
        prompts, info.scored_responses()
      )
    else:
      prompt, length = (
        np.repeat(x, len(info.writers), axis=0)
        for x in _teacher_prompt(stage, role, prompts)
      )
    inputs[role] = TeacherInput(prompt, length)
  return (
    batch._replace(teachers=inputs),
    info._replace(has_context=has_context),
  )


def _teacher_prompt(stage: Stage, role: str, prompts: PromptBatch):
  """Ids [b, P] and lengths [b] of a teacher's prompts."""
  if role in stage.teachers.contexts:
    return stage.teachers.contexts[role](prompts)
  return prompts.prompt, prompts.prompt_length


def place(run: Run, batch: RolloutBatch, staleness: int) -> RolloutBatch:
  """The batch on the mesh.

  Args:
    run: of the mesh.
    batch: of one update, on the host.
    staleness: updates of the student since it was sampled from.
  """
  row = batch.row._replace(
    staleness=np.full(len(batch.prompt), staleness, np.float32)
  )
  return sharding.make_global_array(
    batch._replace(row=row), sharding.batch_sharding(run.mesh)
  )


def teacher_step(
  stage: Stage,
  programs: Programs,
  frozen: Frozen,
  state: TrainState,
  batch: RolloutBatch,
) -> RolloutBatch:
  """The batch, on the mesh, with every teacher's hidden states."""
  if not stage.teachers.models:
    return batch
  hidden = programs.teach(teacher_params(stage, frozen, state), batch)
  return batch._replace(
    teachers={
      role: teacher._replace(hidden=hidden[role])
      for role, teacher in batch.teachers.items()
    }
  )


def update_step(
  stage: Stage,
  run: Run,
  programs: Programs,
  frozen: Frozen,
  state: TrainState,
  batch: RolloutBatch,
  scalars: Mapping[str, float],
):
  """The next state, and metrics (sum, count) on the mesh; consumes the state.

  Args:
    stage, run, programs, frozen: of the stage.
    state: before the update.
    batch: on the mesh, with hidden states.
    scalars: of the terms, see `Loss.scalars`.
  """
  return programs.learn(
    *learner_inputs(stage, run, frozen, state, batch, scalars)
  )


def teacher_heads(stage: Stage, run: Run, frozen: Frozen) -> dict:
  """Role -> head of a frozen teacher: all that the learner reads of it."""
  return {
    role: run.models[stage.teachers.models[role]].head(params)
    for role, params in frozen.teachers.items()
  }


def learner_inputs(
  stage: Stage,
  run: Run,
  frozen: Frozen,
  state: TrainState,
  batch: RolloutBatch,
  scalars: Mapping[str, float],
) -> tuple:
  """The arguments of `learn` and `gradients`: of teachers only the heads."""
  heads = teacher_heads(stage, run, frozen)
  scalars = {name: np.float32(x) for name, x in scalars.items()}
  scalars = sharding.make_global_array(scalars, sharding.replicated(run.mesh))
  return state, heads, batch, frozen.base, scalars


def trace_update(
  stage: Stage,
  run: Run,
  programs: Programs,
  frozen: Frozen,
  state: TrainState,
  batch: RolloutBatch,
  scalars: Mapping[str, float],
) -> Iterator[tuple[str, object]]:
  """What a skipped update read and made, in order, for `first_not_finite`.

  Args:
    stage, run, programs, frozen: of the stage.
    state: after the update was skipped, so as good as before.
    batch: on the mesh, without hidden states.
    scalars: of the update.
  """
  # Of the log-probs, those of padding do not count.
  live = lambda x: None if x is None else jnp.where(batch.mask, x, 0)
  yield (
    'the batch: ',
    {
      'row': batch.row,
      'sampler_logp': live(batch.sampler_logp),
      'rollout_logp': live(batch.rollout_logp),
    },
  )
  batch = teacher_step(stage, programs, frozen, state, batch)
  teachers = teacher_params(stage, frozen, state)
  for role in stage.teachers.models:
    yield f'parameters of {role}: ', teachers[role]
    yield f'hidden states of {role}', batch.teachers[role].hidden
  name, adapters = stage.student.model, stage.student.lora
  yield f'parameters of {name}: ', state.params

  def student_hidden(base, params, batch: RolloutBatch):
    if adapters:
      params = lora.attach(cast(base, run.compute_dtype), params, adapters)
    else:
      params = cast(params, run.compute_dtype)
    of_part = lambda part: score(
      run.models[name], params, part.prompt, part.prompt_length, part.response
    )
    update = stage.update
    parts = update.gradient_accumulation_steps, update.rows_together
    return jax.lax.map(of_part, split(batch, *parts))

  hidden = jax.jit(student_hidden)(frozen.base, state.params, batch)
  yield f'hidden states of {name}', hidden
  inputs = learner_inputs(stage, run, frozen, state, batch, scalars)
  made = jax.jit(programs.gradients)(*inputs)
  terms = [f'loss/{term}' for term in stage.loss.terms(scalars)]
  yield 'a term of the loss: ', {term: made.metrics[term][0] for term in terms}
  yield 'the loss', made.loss
  yield f'the gradient of {name}: ', made.grads
