"""The examination of a config: its models' files, its data, its stages."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
import pathlib

import jax
import numpy as np

from jopd.data import contexts
from jopd.data.examples import Example
from jopd.data.prompts import check_boundary, encode_prompt, turn_end
from jopd.doctor.agreement import compare
from jopd.doctor.findings import Finding, judge, worst
from jopd.doctor.rules import judge_stage, support_of
from jopd.doctor.stage import Examination
from jopd.models import hf, hub
from jopd.run import build
from jopd.run.resolve import make_examples, resolve
from jopd.train.stage import Run, Stage

_ROWS = 4096  # most rows of a source that are looked at


def examine(
  config,
  *,
  workdir: str | None = None,
  prompts: int = 64,
  say: Callable[[str], None] = print,
) -> list[Finding]:
  """Examines every stage of a config.

  Args:
    config: of a file in `configs/`, overrides applied.
    workdir: of `jopd train`; models are as its finished stages left them.
    prompts: how many of each stage's prompts are answered and scored.
    say: takes a line of text for the person who waits.

  Returns:
    The findings, by stage. Where tokenizers or stops make distillation
    impossible, no weight is loaded and there is nothing else.

  Raises:
    ValueError, FileNotFoundError: a setting is wrong, as for `build`.
  """
  if prompts < 1:
    raise ValueError(f'prompts must be at least 1, got {prompts}')
  findings = _agreement(config)
  if worst(findings) == 'refuse':
    return findings
  built = build.build(config, say=say)
  for stage in built.stages:
    findings += examine_data(config, stage, built.run)
    if stage.teachers.models:
      params, missing = _weights(built, stage, workdir)
      if missing:
        findings.append(_not_yet(built, stage, missing))
        continue
      say(f'examining {stage.name}')
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
    params: model name -> parameters on the mesh, as the stage begins.
    prompts: how many to take, at most; rounded to what the mesh divides.
  """
  settings = config[stage.name]
  support = support_of(settings)
  examination = Examination(
    stage, run, params, prompts=prompts, support=support and support[1]
  )
  return judge_stage(
    examination.observe(),
    stage=stage,
    settings=settings,
    vocab_size=run.vocab_size,
    response_tokens=run.max_new_tokens,
  )


def _agreement(config) -> list[Finding]:
  """Tokenizers, stops and templates of all models that have a folder."""
  folders = {
    name: hub.find(spec.path, spec.get('revision'))
    for name, spec in config.models.items()
    if 'path' in spec
  }
  if config.tokenizer not in ('', 'builtin'):
    folder = hub.find(config.tokenizer)
    if folder not in folders.values():
      folders = {'config.tokenizer': folder, **folders}
  if len(folders) < 2:
    return []
  return compare(folders, template_kwargs=config.chat_template_kwargs.to_dict())


def _weights(built, stage: Stage, workdir) -> tuple[dict, list[str]]:
  """Model name -> parameters at the stage's start; stages yet to make some."""
  params, missing = {}, []
  for name in {stage.student.model, *stage.teachers.models.values()}:
    # A student may begin as a copy of another model.
    own = (
      (stage.student.init_from or name) if name == stage.student.model else name
    )
    params[name] = built.params[own]
    earlier = built.stages[: stage.index]
    makers = [before.name for before in earlier if before.student.model == own]
    if not makers:
      continue
    folder = pathlib.Path(workdir or '', makers[-1], 'model')
    if workdir and (folder / 'config.json').is_file():
      where = jax.tree.map(lambda p: p.sharding, params[name])
      params[name] = hf.load(folder, shardings=lambda *_, w=where: w)[1]
    else:
      missing.append(makers[-1])
  return params, missing


def _not_yet(built, stage: Stage, missing: Sequence[str]) -> Finding:
  return judge(
    'not trained yet',
    len(missing),
    f'stages to come first: {", ".join(sorted(missing))}',
    stage=stage.name,
    earlier=tuple(before.name for before in built.stages[: stage.index]),
  )


def examine_data(config, stage: Stage, run: Run) -> list[Finding]:
  """The rows of a stage: which are too long, ungraded, not as the chat is."""
  settings, template = config[stage.name], config.chat_template_kwargs.to_dict()
  examples = make_examples(settings.data or config.data)
  index = np.linspace(0, len(examples) - 1, min(_ROWS, len(examples)))
  rows = [examples[int(i)] for i in index]
  rows = [row for row in rows if isinstance(row, Example)]
  encode = partial(encode_prompt, run.tokenizer, template_kwargs=template)
  read = resolve(contexts, config.context)
  lengths = np.array([len(encode(read(row))) for row in rows])
  of = f'of {len(rows)} rows'
  judged = partial(judge, stage=stage.name)
  findings = [
    judged(
      'dropped prompts',
      np.mean(lengths > config.max_prompt_tokens),
      f'{of} exceed max_prompt_tokens (longest {max(lengths)})',
      longest=max(lengths),
    )
  ]
  if set(stage.rollouts.sources) == {'dataset'}:
    wrong = sum(not _as_chat(row, read, run, template) for row in rows)
    findings.append(
      judged('demonstrations', wrong / len(rows), f'{of} differ from the chat')
    )
  else:
    missing = np.mean([row.answer is None for row in rows])
    findings.append(judged('answers', missing, f'{of} have no answer'))
  return findings


def _as_chat(row, read: Callable, run: Run, template: Mapping) -> bool:
  try:
    check_boundary(
      run.tokenizer,
      read(row),
      row.response,
      stop_id=turn_end(run.tokenizer, template_kwargs=template),
      template_kwargs=template,
    )
  except ValueError:
    return False
  return True
