"""From a config to a run that can start: everything checked, then made.

All that can be known before a weight is loaded is checked first.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
import logging
import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jopd import rewards, sharding
from jopd.data import batching
from jopd.data.filtering import RejectedRows, RowFilter
from jopd.data.prompts import turn_end
from jopd.evaluate.accuracy import make_evaluate
from jopd.models import flash, hf, hub
from jopd.models.blocks import KernelConfig
from jopd.models.decoder import make_model
from jopd.rollout.stop_criteria import make_stops
from jopd.run import checks
from jopd.run.components import make_examples, make_stage, student_context
from jopd.run.config import ConfigError, error_context, refuse_unknown
from jopd.run.resolve import plain, qualified_name, resolve
from jopd.run.tokens import find_tokenizer
from jopd.train import random_streams
from jopd.train.metrics import Clock
from jopd.train.stage import Run, Stage

_log = logging.getLogger(__name__)


class Built(NamedTuple):
  """A run, ready to start."""

  run: Run
  stages: tuple[Stage, ...]
  params: dict[str, dict]  # model name -> parameters on the mesh


def build(
  config,
  *,
  left_out: str | os.PathLike | None = None,
) -> Built:
  """Everything a run needs, from its config.

  Args:
    config: of a file in `configs/`, overrides applied; see jopd/run/config.py.
    left_out: file that is written anew with the rows that are left out, even
      where they are too many; see data/filtering.py. None: they are told.

  Raises:
    ValueError, FileNotFoundError: a setting is wrong; nothing else was written.
  """
  run, stages = _prepare(config, None, left_out)
  return Built(run, stages, _params(config, run))


def build_abstract(config, devices: Sequence[jax.Device]) -> Built:
  """The same on devices that need not be here, with shapes for parameters.

  No weight is loaded and nothing is allocated.
  """
  run, stages = _prepare(config, devices)
  params = {}
  for name, model in run.models.items():
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    with error_context(f'config.models.{name}'):
      where = sharding.param_shardings(run.mesh, model.axes, shapes)
    params[name] = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      shapes,
      where,
    )
  return Built(run, stages, params)


def _prepare(config, devices, left_out=None) -> tuple[Run, tuple[Stage, ...]]:
  """All but the parameters."""
  checks.check(config)
  checks.check_stages(config)
  run, encoding = _run(config, devices)
  rejected = RejectedRows(config.max_bad_row_fraction, left_out)
  stages = []
  try:
    with error_context('config.eval_data'):
      prompts = _eval_prompts(config, config.eval_data, run, encoding, rejected)
    run = run._replace(evaluate=_evaluator(config, run, prompts))
    for index, name in enumerate(config.stages):
      with error_context(f'config.{name}'):
        stages.append(make_stage(config, index, run, encoding, rejected))
  finally:
    if jax.process_index() == 0:
      rejected.write()
  return run, tuple(stages)


def build_evaluation(
  config,
  folder: str,
  *,
  record: Callable[[dict], None] | None = None,
) -> Callable[[], dict[str, dict]]:
  """A function that measures a Hugging Face folder.

  Args:
    config: whose evaluation prompts, reward and limits to use; its own models,
      tokenizer and stages play no part.
    folder: of the model and its tokenizer.
    record: takes every graded response as `make_evaluate` describes it, and
      with the name of its task under 'task'.

  Returns:
    A function without arguments, which returns for each task of
    config.eval_tasks, or else for 'eval_data', the numbers of `make_evaluate`.

  Raises:
    ValueError, FileNotFoundError: a setting or a file is wrong.
  """
  config = config.copy_and_resolve_references()
  config.models = ConfigDict({'model': {'path': folder}})
  config.tokenizer = ''
  checks.check(config)
  run, encoding = _run(config)
  rejected = RejectedRows(config.max_bad_row_fraction)
  evaluators = {}
  tasks = config.eval_tasks or {'eval_data': config.eval_data}
  for task, spec in tasks.items():
    with error_context(task):
      prompts = _eval_prompts(config, spec, run, encoding, rejected)
    own = record and (lambda row, task=task: record({'task': task, **row}))
    evaluators[task] = _evaluator(config, run, prompts, record=own)
  params = _params(config, run)['model']
  return lambda: {
    task: evaluate('model', params) for task, evaluate in evaluators.items()
  }


def _run(config, devices=None) -> tuple[Run, dict]:
  """What all stages share, and how text becomes tokens. No weights yet.

  Its `evaluate` is still to come.
  """
  with error_context('config.mesh'):
    mesh = sharding.make_mesh(**config.mesh, devices=devices)
  with error_context('config.eval.batch_size'):
    sharding.check_batch(mesh, config.eval.batch_size)
  with error_context('tokenizer'):
    where, tokenizer, stops = find_tokenizer(config)
  encoding = dict(
    tokenizer=tokenizer, template_kwargs=config.chat_template_kwargs.to_dict()
  )
  with error_context(f'tokenizer {where}, chat_template_kwargs'):
    encoding['stop_id'] = stop_id = turn_end(**encoding)
  with error_context('config.context'):
    encoding['context'] = student_context(config.context)
  with error_context('config.reward'):
    reward = resolve('reward', config.reward)
    checks.check_marks(config.reward, tokenizer)
  # A student that learns where the template ends a turn must stop there.
  stop_ids = tuple(sorted({*stops, stop_id}))
  with error_context('config.stop_strings'):
    texts = config.stop_strings
    stops = make_stops(stop_ids, strings=texts, tokenizer=tokenizer)
  run = Run(
    models={
      name: _model(config, name, mesh, len(tokenizer)) for name in config.models
    },
    mesh=mesh,
    tokenizer=tokenizer,
    stops=stops,
    vocab_size=len(tokenizer),
    max_new_tokens=config.max_response_tokens,
    num_length_buckets=config.num_length_buckets,
    compute_dtype=jnp.dtype(config.compute_dtype),
    reward=partial(rewards.grade, reward),
    evaluate=None,
    checkpoint=dict(config.checkpoint),
    loggers=_trackers(config.loggers),
    key=jax.random.fold_in(jax.random.key(config.seed), random_streams.STAGES),
    clock=Clock(),
  )
  return run, encoding


def _last_name(spec) -> str:
  """What a logger is called: the name of its function."""
  if hasattr(spec, 'items'):
    spec = spec['name']
  name = spec if isinstance(spec, str) else qualified_name(spec)
  return name.rpartition(':')[2]


def _model_spec(config, name: str):
  """A function, or the settings of a model."""
  spec = config.models[name]
  return spec.to_dict() if isinstance(spec, ConfigDict) else spec


def _trackers(specs) -> dict[str, Callable]:
  """Name -> (folder, log) -> tracker."""
  with error_context('config.loggers'):
    return {_last_name(spec): resolve('logger', spec) for spec in specs}


def _eval_prompts(
  config, spec, run: Run, encoding, rejected: RejectedRows
) -> batching.PromptBatch:
  """The prompts that an evaluation asks, with an answer each."""
  check = partial(checks.check_answer, reward=run.reward, required=True)
  examples = RowFilter(rejected, plain(spec)).select(
    make_examples(spec), check, count=config.eval.prompts
  )
  return batching.encode_batch(
    examples, max_prompt_tokens=config.max_prompt_tokens, **encoding
  )


def _model(config, name: str, mesh, tokens: int):
  """A model without its parameters."""
  options = dict(
    remat=config.remat,
    constrain=sharding.constrain_batch(mesh),
    kernels=kernel_config(mesh),
  )
  spec = _model_spec(config, name)
  with error_context(f'config.models.{name}'):
    if callable(spec) or 'name' in spec:
      model = resolve('model', spec)()
    elif 'path' in spec:
      refuse_unknown(spec, {'path', 'revision'}, 'a model with a path')
      folder = hub.find(**spec)
      model = make_model(hf.read_config(folder), **options)
      hf.check(folder, model)
    else:
      model = hf.fresh({'vocab_size': tokens, **spec}, **options)
    if model.vocab_size < tokens:
      raise ConfigError(
        f'its vocabulary of {model.vocab_size} cannot hold the {tokens} tokens'
        ' of the tokenizer'
      )
    checks.check_positions(
      model,
      'max_prompt_tokens',
      config.max_prompt_tokens,
      config.max_response_tokens,
    )
  return model


def kernel_config(mesh) -> KernelConfig:
  """How experts and attention run on the devices of a mesh."""
  attend = flash.attend_on(mesh.devices.flat[0].platform)
  if attend is not flash.plain:
    attend = sharding.by_heads(mesh)(attend)
  return KernelConfig(
    sharding.by_rows(mesh), attend, sharding.gather_layer(mesh)
  )


def _params(config, run: Run) -> dict[str, dict]:
  """The parameters of each model on the mesh, loaded or fresh."""
  place = partial(sharding.param_shardings, run.mesh)
  root = jax.random.fold_in(jax.random.key(config.seed), random_streams.WEIGHTS)
  params = {}
  for index, name in enumerate(sorted(config.models)):
    spec = _model_spec(config, name)
    model, key = run.models[name], jax.random.fold_in(root, index)
    if not callable(spec) and 'path' in spec:
      folder = hub.find(**spec)
      _log.info('loading %s from %s', name, folder)
      params[name] = hf.load(folder, shardings=place)[1]
      continue
    with error_context(f'config.models.{name}'):
      shardings = place(model.axes, jax.eval_shape(model.init, key))
    params[name] = jax.jit(model.init, out_shardings=shardings)(key)
  return params


def _evaluator(config, run: Run, prompts: batching.PromptBatch, *, record=None):
  """(model name, params) -> accuracies; a model is compiled when asked for."""

  @cache
  def of(name: str):
    generate = run.make_generate(
      run.make_policy(run.models[name]),
      f'{name}: evaluation',
      group_size=1 + config.eval.samples,
      max_num_seqs=config.eval.batch_size,
    )
    return make_evaluate(
      generate,
      run.tokenizer,
      run.reward,
      prompts,
      batch_size=config.eval.batch_size,
      samples=config.eval.samples,
      temperature=config.eval.temperature,
      top_p=config.eval.top_p,
      record=record,
    )

  key = jax.random.fold_in(
    jax.random.key(config.seed), random_streams.EVALUATION
  )
  return lambda name, params: of(name)(params, key)
