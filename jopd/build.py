"""From a config to a run that can start: everything checked, then made.

All that can be known before a weight is loaded is checked first.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jopd import rewards, sharding
from jopd.config import base, did_you_mean, refuse_unknown
from jopd.config import stage as default_stage
from jopd.data import batching, contexts, sources
from jopd.data.prompts import turn_end
from jopd.data.tokenizer import builtin_tokenizer
from jopd.evaluate import make_evaluate
from jopd.models import hf
from jopd.recipe import make_optimizer, make_reduction, make_term, resolve
from jopd.rollout.engine import make_generate
from jopd.rollout.pick import sampling
from jopd.train.metrics import Clock
from jopd.train.stage import Run, Stage


class Built(NamedTuple):
  """A run, ready to start."""

  run: Run
  stages: tuple[Stage, ...]
  params: dict[str, dict]  # model name -> parameters on the mesh


def build(config, *, say: Callable[[str], None] = print) -> Built:
  """Everything a run needs, from its config.

  Args:
    config: of a file in `configs/`, overrides applied; see jopd/config.py.
    say: takes a line of text for the person who waits.

  Raises:
    ValueError, FileNotFoundError: a setting is wrong; nothing was written.
  """
  _check(config)
  mesh = sharding.make_mesh(**config.mesh)
  for name in config.stages:
    stage = config[name]
    sharding.check_batch(
      mesh, stage.batch_size * stage.group_size // stage.micro_batches
    )
  sharding.check_batch(mesh, config.eval.batch_size)
  tokenizer, stop_ids = _tokenizer(config)
  encoding = dict(
    tokenizer=tokenizer,
    stop_id=turn_end(tokenizer, template_kwargs=dict(config.template)),
    template_kwargs=dict(config.template),
  )
  grade = resolve(rewards, config.reward)
  prompts = batching.encode_batch(
    resolve(sources, config.eval_data)()[: config.eval.prompts],
    max_prompt_tokens=config.max_prompt_tokens,
    **encoding,
  )
  stages = tuple(
    _stage(config, index, encoding)
    for index in range(len(config.stages))
  )
  models, params = {}, {}
  key = jax.random.key(config.seed)
  for index, (name, spec) in enumerate(sorted(config.models.items())):
    models[name], params[name] = _model(
      config, spec, mesh, len(tokenizer), jax.random.fold_in(key, index)
    )
  run = Run(
    models=models,
    mesh=mesh,
    tokenizer=tokenizer,
    stop_ids=stop_ids,
    vocab_size=len(tokenizer),
    max_response_tokens=config.max_response_tokens,
    compute_dtype=jnp.dtype(config.compute_dtype),
    grade=lambda text, example: grade(text, example.answer),
    evaluate=None,
    checkpoint=dict(config.checkpoint),
    key=key,
    clock=Clock(),
    say=say,
  )
  run = run._replace(evaluate=_evaluator(config, run, prompts))
  return Built(run, stages, params)


def _check(config) -> None:
  """What can be said of a config before anything is read or made."""
  # A section that could be a stage may stand unused beside those that are.
  spare = [n for n, v in config.items() if {*default_stage()} == {*_keys(v)}]
  refuse_unknown(config, {*base(), *config.stages, *spare}, 'a config')
  if not config.stages:
    raise ValueError("a config needs stages, such as ('distil',)")
  for name in config.stages:
    if name not in config:
      raise ValueError(f'config.stages names {name!r}; add config.{name}')
    stage, where = config[name], f'config.{name}'
    refuse_unknown(stage, default_stage(), where)
    models = {stage.student, *stage.teachers.values()}
    if unknown := models - set(config.models):
      wrong = sorted(unknown)[0]
      raise ValueError(
        f'{where} uses a model {wrong!r}{did_you_mean(wrong, config.models)}'
      )
    sources_known = {'dataset', 'student', *stage.teachers}
    if stage.source not in sources_known:
      raise ValueError(
        f'{where}.source is {stage.source!r}'
        f'{did_you_mean(stage.source, sources_known)}'
      )
    refuse_unknown(stage.contexts, stage.teachers, f'{where}.contexts')
    rows = stage.batch_size * stage.group_size
    if rows % stage.micro_batches:
      raise ValueError(
        f'{where}: {rows} rows (batch_size x group_size) do not divide into'
        f' {stage.micro_batches} micro_batches'
      )
    if stage.source == 'dataset' and stage.group_size != 1:
      raise ValueError(
        f'{where}: a dataset has one response; group_size is'
        f' {stage.group_size}, use 1'
      )
    if not stage.terms:
      raise ValueError(f'{where}.terms is empty: there is no loss')
    sampling(1, **stage.rollout)


def _keys(value):
  return value if isinstance(value, ConfigDict) else ()


def _tokenizer(config):
  """The tokenizer of all models, and the ids that end a response."""
  folders = {n: m.path for n, m in config.models.items() if 'path' in m}
  where = config.tokenizer or next(iter(folders.values()), 'builtin')
  if where == 'builtin':
    tokenizer = builtin_tokenizer()
    return tokenizer, (tokenizer.eos_token_id,)
  tokenizer = hf.load_tokenizer(where)
  stops = set(hf.stop_ids(where, tokenizer))
  for name, folder in folders.items():
    other = hf.load_tokenizer(folder)
    if other.get_vocab() != tokenizer.get_vocab():
      raise ValueError(
        f'the tokenizer of model {name!r} ({folder}) is not that of {where}:'
        ' student and teacher must share every token id'
      )
    if not stops & set(hf.stop_ids(folder, other)):
      raise ValueError(
        f'model {name!r} ({folder}) stops at'
        f' {sorted(hf.stop_ids(folder, other))}, {where} at {sorted(stops)}:'
        ' a student would never learn to stop; correct generation_config.json'
      )
  return tokenizer, tuple(sorted(stops))


def _model(config, spec, mesh, vocab_size, key):
  """A model and its parameters on the mesh, loaded or fresh."""
  place = partial(sharding.param_shardings, mesh)
  options = dict(remat=config.remat, constrain=sharding.constrain_batch(mesh))
  if 'path' in spec:
    refuse_unknown(spec, {'path'}, 'a model with a path')
    return hf.load(spec.path, shardings=place, **options)
  model = hf.fresh({'vocab_size': vocab_size, **spec}, **options)
  shapes = jax.eval_shape(model.init, key)
  init = jax.jit(model.init, out_shardings=place(model.axes, shapes))
  return model, init(key)


def _stage(config, index: int, encoding) -> Stage:
  name = config.stages[index]
  settings = config[name]
  tx, learning_rate = make_optimizer(settings)
  make_terms = lambda step: {
    n: make_term(spec, step) for n, spec in settings.terms.items()
  }
  make_terms(0)  # says what is wrong with them now

  data = resolve(sources, settings.data or config.data)()
  imitates = settings.source == 'dataset'
  if imitates and any(example.response is None for example in data):
    raise ValueError(
      f'config.{name} learns the responses of its data, but a row has none;'
      ' add them, or choose another source'
    )
  batches = batching.make_iterator(
    data,
    batch_size=settings.batch_size,
    max_prompt_tokens=config.max_prompt_tokens,
    max_response_tokens=config.max_response_tokens if imitates else 0,
    seed=config.seed + index,
    overlong='drop',
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    **encoding,
  )

  def reader(context):
    def read(prompts):
      batch = batching.encode_batch(
        prompts.examples,
        max_prompt_tokens=settings.max_context_tokens,
        context=context,
        **encoding,
      )
      return batch.prompt, batch.prompt_length

    return read

  return Stage(
    name=name,
    index=index,
    student=settings.student,
    teachers=dict(settings.teachers),
    source=settings.source,
    batches=batches,
    contexts={
      role: reader(resolve(contexts, spec))
      for role, spec in settings.contexts.items()
    },
    make_terms=make_terms,
    reduction=make_reduction(settings.reduce),
    tx=tx,
    learning_rate=learning_rate,
    steps=settings.steps,
    group_size=settings.group_size,
    micro_batches=settings.micro_batches,
    sampling=dict(settings.rollout),
    temperature=settings.temperature,
    chunk_tokens=settings.chunk_tokens,
    eval_every=settings.eval_every,
    fingerprint=dict(
      seed=config.seed,
      models=config.models.to_dict(),
      student=settings.student,
      optimizer=settings.optimizer.to_dict(),
    ),
  )


def _evaluator(config, run: Run, prompts: batching.PromptBatch):
  """(model name, params) -> accuracies; a model is compiled when asked for."""

  @cache
  def of(name: str):
    return make_evaluate(
      make_generate(
        run.models[name],
        run.mesh,
        stop_ids=run.stop_ids,
        max_new_tokens=run.max_response_tokens,
        vocab_size=run.vocab_size,
        compute_dtype=run.compute_dtype,
        name=f'{name}: evaluation',
        say=run.say,
        clock=run.clock,
      ),
      run.tokenizer,
      run.grade,
      prompts,
      batch_size=config.eval.batch_size,
      samples=config.eval.samples,
      temperature=config.eval.temperature,
      top_p=config.eval.top_p,
    )

  return lambda name, params: of(name)(params, run.key)
