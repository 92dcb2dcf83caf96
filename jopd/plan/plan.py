"""From a config to what each of its stages will need on some devices."""

from collections.abc import Callable
from typing import NamedTuple

from jopd.plan import chips
from jopd.plan.phases import measure
from jopd.plan.program import Phase, TooLarge
from jopd.plan.sketch import sketch
from jopd.run import build


class StagePlan(NamedTuple):
  """What a stage needs.

  Attributes:
    name: of the stage.
    responses: that a step samples, or reads of a dataset.
    tokens: most tokens of each.
    phases: in their order, as far as they fit.
    refused: (phase, what the compiler said) of the first that does not.
  """

  name: str
  responses: int
  tokens: int
  phases: list[Phase]
  refused: tuple[str, str] | None


class RunPlan(NamedTuple):
  """What a run needs.

  Attributes:
    chip: of every device; None where it is not known.
    devices: how many.
    mesh: axis -> size.
    stages: in their order.
  """

  chip: chips.Chip | None
  devices: int
  mesh: dict[str, int]
  stages: list[StagePlan]


def plan(
  config, topology: str = '', *, say: Callable[[str], None] = print
) -> RunPlan:
  """Compiles every phase of a config from shapes, for devices of any kind.

  Args:
    config: as `build` takes it. Of models with a path only `config.json` is
      read; see `sketch`.
    topology: see `chips.find`.
    say: takes a line of text for the person who waits.

  Raises:
    ValueError, FileNotFoundError: a setting or the topology is wrong.
  """
  devices, chip = chips.find(topology)
  built = build.build_abstract(sketch(config), devices, say=say)
  # Of the models' tokenizer, not of the one that stands in for it.
  most = min(model.vocab_size for model in built.run.models.values())
  run = built.run._replace(vocab_size=most)
  stages = []
  for stage in built.stages:
    settings = config[stage.name]
    widths = {
      role: settings.max_teacher_prompt_tokens
      if role in settings.teacher_contexts
      else config.max_prompt_tokens
      for role in stage.teachers.models
    } | {'': config.max_prompt_tokens}
    phases, refused = [], None
    try:
      for phase in measure(
        stage,
        run,
        built.params,
        prompts=settings.batch_size,
        widths=widths,
        say=say,
      ):
        phases.append(phase)
    except TooLarge as error:
      refused = error.args
    responses = settings.batch_size * stage.rollouts.group_size
    stages.append(
      StagePlan(
        stage.name, responses, config.max_response_tokens, phases, refused
      )
    )
  return RunPlan(chip, len(devices), dict(built.run.mesh.shape), stages)
