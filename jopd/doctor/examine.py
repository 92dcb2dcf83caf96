"""The findings of a config: of its models' files, its data and its stages."""

from collections.abc import Mapping, Sequence
from functools import partial
import logging
import pathlib

import jax
import numpy as np

from jopd.data.examples import Example
from jopd.data.prompts import check_boundary, encode_prompt, turn_end
from jopd.doctor.findings import Finding, judge, worst
from jopd.doctor.rules import judge_stage, support_of
from jopd.doctor.stage import Examination
from jopd.models import hf, hub
from jopd.run import build
from jopd.run.components import make_examples, student_context
from jopd.run.config import ConfigError, error_context
from jopd.run.loss import TermSpec, check_term, read_terms
from jopd.run.sources import make_sources
from jopd.train.callbacks.base import initial_scalars
from jopd.train.stage import Run, Stage

_log = logging.getLogger(__name__)
_MAX_ROWS = 4096  # of a source
_CHATS = (
  [{'role': 'user', 'content': 'What is 2 + 3?'}],
  [
    {'role': 'system', 'content': 'Be brief.'},
    {'role': 'user', 'content': 'What is 2 + 3?'},
  ],
)


def examine(
  config, *, workdir: str | None = None, prompts: int = 64
) -> list[Finding]:
  """Examines every stage of a config.

  Args:
    config: of a file in `configs/`, overrides applied.
    workdir: of `jopd train`; models are taken from its finished stages.
    prompts: of each stage, that are answered and scored.

  Returns:
    The findings, by stage. If tokenizers or stop tokens make distillation
    impossible, no weight is loaded and these are the only findings.

  Raises:
    ValueError, FileNotFoundError: a setting is wrong, as for `build`.
  """
  if prompts < 1:
    raise ConfigError(f'--prompts must be at least 1, got {prompts}')
  findings = _compare_models(config)
  if worst(findings) == 'refuse':
    return findings
  built = build.build(config)
  for stage in built.stages:
    findings += examine_data(config, stage, built.run)
    findings += check_gradients(config, stage, built.run)
    if stage.teachers.models:
      params, missing = _weights(built, stage, workdir)
      if missing:
        findings.append(_not_yet(built, stage, missing))
        continue
      _log.info('examining %s', stage.name)
      findings += examine_stage(
        config, stage, built.run, params, prompts=prompts
      )
  return findings


def examine_stage(
  config, stage: Stage, run: Run, params: Mapping[str, dict], *, prompts: int
) -> list[Finding]:
  """The findings of one stage that has teachers.

  Args:
    config: that it was made of.
    stage: whose data iterator is at its beginning.
    run: what all stages share.
    params: model name -> parameters on the mesh, at the start of the stage.
    prompts: most prompts to take; rounded to what the mesh divides.
  """
  terms = _read_terms(config, stage)
  support = support_of(terms, run.vocab_size)
  examination = Examination(
    stage, run, params, prompts=prompts, support=support and support[1]
  )
  return judge_stage(
    examination.observe(),
    stage=stage,
    terms=terms,
    vocab_size=run.vocab_size,
    response_tokens=run.max_new_tokens,
  )


def check_gradients(config, stage: Stage, run: Run) -> list[Finding]:
  """The gradient check of each term of a stage, on a small vocabulary."""
  settings, findings = config[stage.name], []
  scalars = stage.loss.scalars(0, initial_scalars(stage, run))
  for name, term in _read_terms(config, stage).items():
    reason = ''
    try:
      check_term(
        term,
        scalars,
        tuple(settings.teachers),
        stage.rollouts.group_size,
        run.vocab_size,
      )
    except ValueError as error:
      reason = str(error)
    text = f'failures of term {name} on a small vocabulary'
    findings.append(
      judge(
        'gradient check',
        bool(reason),
        text,
        stage=stage.name,
        term=name,
        reason=reason,
      )
    )
  return findings


def _read_terms(config, stage: Stage) -> dict[str, TermSpec]:
  """The terms of the loss of a stage, names resolved."""
  settings = config[stage.name]
  return read_terms(settings.loss.to_dict(), make_sources(settings))


def _compare_models(config) -> list[Finding]:
  """Compares the tokenizers of all models that have a folder."""
  folders = {}
  for name, spec in config.models.items():
    if 'path' in spec:
      with error_context(f'config.models.{name}'):
        folders[name] = hub.find(spec.path, spec.get('revision'))
  if config.tokenizer not in ('', 'builtin'):
    with error_context('config.tokenizer'):
      folder = hub.find(config.tokenizer)
    if folder not in folders.values():
      folders = {'config.tokenizer': folder, **folders}
  if len(folders) < 2:
    return []
  with error_context('config.models'):
    return compare_tokenizers(
      folders, template_kwargs=config.chat_template_kwargs.to_dict()
    )


def compare_tokenizers(
  folders: Mapping[str, str], *, template_kwargs: Mapping | None = None
) -> list[Finding]:
  """Compares the tokenizer files of all models with those of the first.

  Args:
    folders: name of a model -> its Hugging Face folder; one or more.
    template_kwargs: variables of the chat template.

  Returns:
    For each further model: tokenizer (ids that stand for another token),
    special tokens (that only one of the two has), stop tokens (fraction that is
    not shared) and chat template (how many of two chats it renders differently;
    refusing a chat counts).

  Raises: FileNotFoundError, ValueError: a folder has no tokenizer, or a
    damaged one.
  """
  loaded = {name: hf.load_tokenizer(path) for name, path in folders.items()}
  (first, reference), *others = loaded.items()
  reference_stops = {*hf.stop_ids(folders[first], reference)}
  findings = []
  for model, tokenizer in others:
    names = dict(first=first, model=model)
    pair = f'{model} against {first}'
    ids = reference.get_vocab().items() ^ tokenizer.get_vocab().items()
    special = {*reference.all_special_tokens} ^ {*tokenizer.all_special_tokens}
    stops = {*hf.stop_ids(folders[model], tokenizer)}
    unshared = len(stops ^ reference_stops) / len(stops | reference_stops)
    both = f'{sorted(stops)}, {sorted(reference_stops)}'
    differing, text = _compare_templates(reference, tokenizer, template_kwargs)
    findings += [
      judge('tokenizer', len(ids), f'token-id pairs, {pair}', **names),
      judge('special tokens', len(special), f'in one only, {pair}', **names),
      judge('stop tokens', unshared, f'not shared, {pair}: {both}', **names),
      judge('chat template', differing, f'{text}, {pair}', **names),
    ]
  return findings


def _compare_templates(first, second, template_kwargs) -> tuple[int, str]:
  """How many chats two tokenizers render differently, and a text about it."""
  differing, text = 0, f'of {len(_CHATS)} chats rendered differently'
  for chat in _CHATS:
    rendered = []
    for tokenizer in (first, second):
      try:
        ids = encode_prompt(tokenizer, chat, template_kwargs=template_kwargs)
        rendered.append(tokenizer.decode(ids))
      except ValueError as error:
        rendered.append(f'refused: {error}')
    if rendered[0] != rendered[1]:
      differing += 1
      if ('think' in rendered[0]) != ('think' in rendered[1]):
        text = f'of {len(_CHATS)} chats, in the thinking mode too'
  return differing, text


def _weights(built, stage: Stage, workdir) -> tuple[dict, list[str]]:
  """Model name -> parameters at the stage's start; earlier stages to be run."""
  params, missing = {}, []
  student = stage.student
  for name in {student.model, *stage.teachers.models.values()}:
    # A student may start as a copy of another model.
    origin = student.init_from if name == student.model else ''
    origin = origin or name
    params[name] = built.params[origin]
    earlier = [
      before.name
      for before in built.stages[: stage.index]
      if before.student.model == origin
    ]
    if not earlier:
      continue
    folder = pathlib.Path(workdir or '', earlier[-1], 'model')
    if workdir and (folder / 'config.json').is_file():
      shardings = jax.tree.map(lambda p: p.sharding, params[name])
      params[name] = hf.load(folder, shardings=lambda *_, s=shardings: s)[1]
    else:
      missing.append(earlier[-1])
  return params, missing


def _not_yet(built, stage: Stage, missing: Sequence[str]) -> Finding:
  return judge(
    'not trained yet',
    len(missing),
    f'stages to run first: {", ".join(sorted(missing))}',
    stage=stage.name,
    earlier=tuple(before.name for before in built.stages[: stage.index]),
  )


def examine_data(config, stage: Stage, run: Run) -> list[Finding]:
  """The findings of the rows of a stage."""
  settings, template = config[stage.name], config.chat_template_kwargs.to_dict()
  examples = make_examples(settings.data or config.data)
  indices = np.linspace(0, len(examples) - 1, min(_MAX_ROWS, len(examples)))
  rows = [examples[int(i)] for i in indices]
  rows = [row for row in rows if isinstance(row, Example)]
  encode = partial(encode_prompt, run.tokenizer, template_kwargs=template)
  context = student_context(config.context)
  lengths = np.array([len(encode(context(row))) for row in rows])
  total = f'of {len(rows)} rows'
  judged = partial(judge, stage=stage.name)
  findings = [
    judged(
      'dropped prompts',
      np.mean(lengths > config.max_prompt_tokens),
      f'{total} exceed max_prompt_tokens (longest {max(lengths)})',
      longest=max(lengths),
    )
  ]
  if set(stage.rollouts.sources) != {'dataset'}:
    missing = np.mean([row.answer is None for row in rows])
    return [*findings, judged('answers', missing, f'{total} have no answer')]
  stop_id = turn_end(run.tokenizer, template_kwargs=template)

  def differs(row: Example) -> bool:
    try:
      check_boundary(
        run.tokenizer,
        context(row),
        row.response,
        stop_id=stop_id,
        template_kwargs=template,
      )
    except ValueError:
      return True
    return False

  differing = np.mean([differs(row) for row in rows])
  text = f'{total} differ from the chat'
  return [*findings, judged('demonstrations', differing, text)]
