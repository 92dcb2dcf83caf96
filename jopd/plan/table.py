"""A plan as text and as JSON, with what to change if it does not fit."""

import json
from typing import NamedTuple

from jopd.plan.chips import Chip
from jopd.plan.plan import RunPlan, StagePlan
from jopd.plan.program import Phase

SPARE = 0.1  # of a device's memory, for allocators and runtimes
_GIB = 2**30


class Time(NamedTuple):
  """Estimated seconds of a phase in one step; not measured on a device.

  Attributes:
    least: if communication overlaps with the computation.
    most: if it does not.
  """

  least: float
  most: float


def time(phase: Phase, chip: Chip, devices: int) -> Time:
  """Estimated time of a phase in one step, all of its calls together."""
  cost = phase.cost
  # The compiler's cycles, if it counts them, include inefficiencies.
  work = phase.kernels / devices / chip.flops
  work += cost.cycles / chip.clock if chip.clock else 0.0
  work = max(
    work,
    phase.flops / devices / chip.flops,
    cost.traffic / chip.bandwidth,
  )
  links = received(phase) / chip.links
  times = phase.times
  return Time(times * max(work, links), times * (work + links))


def received(phase: Phase) -> float:
  """Bytes that a device receives from others."""
  times = {
    # A sum is scattered, then gathered; its result is the whole.
    'all-reduce': lambda n: 2 * (n - 1) / n,
    'all-gather': lambda n: (n - 1) / n,
    # Its result is one part of what is sent.
    'reduce-scatter': lambda n: n - 1,
    'all-to-all': lambda n: (n - 1) / n,
  }
  once = lambda n: 1
  collectives = phase.cost.collectives.items()
  sizes = (times.get(kind, once)(n) * size for (kind, n), size in collectives)
  return sum(sizes, 0.0)


def memory(phase: Phase) -> float:
  """Bytes of a device."""
  return sum(phase.memory.values())


def status(plan: RunPlan) -> str:
  """'ok' with SPARE left, 'warn' with less, 'refuse' if it does not fit."""
  if any(stage.refused for stage in plan.stages):
    return 'refuse'
  if plan.chip is None:
    return 'ok'
  peak = max(memory(p) for stage in plan.stages for p in stage.phases)
  share = peak / plan.chip.memory
  return 'refuse' if share > 1 else 'warn' if share > 1 - SPARE else 'ok'


def page(plan: RunPlan) -> str:
  """The plan as text."""
  mesh = ' x '.join(f'{axis} {n}' for axis, n in plan.mesh.items())
  chip = plan.chip
  if chip:
    lines = [
      f'{plan.devices} x {chip.name}, {chip.memory / _GIB:.0f} GiB,'
      f' {chip.flops / 1e12:.0f} TFLOP/s, {chip.bandwidth / 1e9:,.0f} GB/s;'
      f' mesh: {mesh}'
    ]
  else:
    lines = [f'{plan.devices} devices of an unknown chip; mesh: {mesh}']
  for stage in plan.stages:
    lines += ['', *_stage(stage, plan)]
  verdict = {
    'ok': f'fits, with {SPARE:.0%} to spare' if chip else 'compiles',
    'warn': f'fits, with less than {SPARE:.0%} to spare',
    'refuse': 'does not fit',
  }
  return '\n'.join([*lines, '', verdict[status(plan)]])


_HEADER = (
  f'  {"":8} {"times":>6}  {"held":>7} {"inputs":>7} {"results":>7}'
  f' {"temp.":>7} {"GiB":>7}   {"TFLOP":>8} {"GB":>8} {"links":>7}'
  f'  {"seconds":>15} {"useful":>13}'
)


def _stage(stage: StagePlan, plan: RunPlan) -> list[str]:
  """The lines of a stage: its phases, their sum, what to change."""
  lines = [
    f'{stage.name}: {stage.responses:,} responses of {stage.tokens:,} tokens'
    ' in a step',
    _HEADER,
  ]
  total = Time(0.0, 0.0)
  for phase in stage.phases:
    kinds = [phase.memory[kind] for kind in phase.memory]
    row = f'  {phase.name:8} {phase.times:6}  '
    row += ' '.join(f'{x / _GIB:7.2f}' for x in (*kinds, memory(phase)))
    row += f'   {phase.flops * phase.times / plan.devices / 1e12:8.2f}'
    row += f' {phase.cost.traffic * phase.times / 1e9:8.1f}'
    row += f' {received(phase) * phase.times / 1e9:7.1f}'
    if plan.chip:
      own = time(phase, plan.chip, plan.devices)
      total = Time(total.least + own.least, total.most + own.most)
      row += f'  {_range(own, 2):>15} {_useful(phase, own, plan):>13}'
    lines.append(row)
  if plan.chip and stage.phases:
    lines.append(f'  a step takes {_range(total, 1)} s, estimated')
  if stage.refused:
    name, message = stage.refused
    lines.append(f'  {name:8} does not fit: {message}')
  return lines + [f'  change   {fix}' for fix in fixes(stage, plan.chip)]


def _useful(phase: Phase, own: Time, plan: RunPlan) -> str:
  """Fraction of the peak: of bandwidth in decoding, else of operations."""
  if phase.least is not None:
    best = phase.times * phase.least / plan.chip.bandwidth
  else:
    best = phase.times * phase.useful / plan.devices / plan.chip.flops
  shares = sorted({f'{best / seconds:.0%}' for seconds in own if seconds})
  return ' to '.join(shares)


def _range(own: Time, digits: int) -> str:
  least, most = (f'{x:.{digits}f}' for x in own)
  return least if least == most else f'{least} to {most}'


_FEWER_SEQUENCES = 'config.{stage}.max_num_seqs: fewer sequences at a time'
_MORE_PARTS = 'config.{stage}.gradient_accumulation_steps: more parts'
_FEWER_ROWS = 'config.{stage}.batch_size or num_minibatches: fewer rows'
_FIXES = {
  ('prefill', 'temporaries'): 'config.{stage}.batch_size: fewer prompts',
  ('prefill', 'results'): _FEWER_SEQUENCES,
  ('decode', 'inputs'): f'{_FEWER_SEQUENCES}; or more devices in mesh.fsdp or'
  ' mesh.tensor',
  ('decode', 'temporaries'): _FEWER_SEQUENCES,
  ('teacher', 'temporaries'): _MORE_PARTS,
  ('teacher', 'results'): _FEWER_ROWS,
  ('learner', 'temporaries'): f"{_MORE_PARTS}; config.remat = 'full';"
  ' config.{stage}.loss_chunk_tokens: fewer',
  ('learner', 'inputs'): _FEWER_ROWS,
}


def fixes(stage: StagePlan, chip: Chip | None) -> list[str]:
  """What to change if a phase needs more memory than there is."""
  causes = []
  if stage.refused:
    name = stage.refused[0]
    kind = 'inputs' if name == 'decode' else 'temporaries'
    causes.append((name, kind))
  for phase in stage.phases:
    if chip and memory(phase) > (1 - SPARE) * chip.memory:
      causes.append((phase.name, max(phase.memory, key=phase.memory.get)))
  held = 'config.mesh.fsdp: more devices, over which the state is sharded'
  texts = [_FIXES.get(cause, held).format(stage=stage.name) for cause in causes]
  return list(dict.fromkeys(texts))


def as_json(plan: RunPlan) -> str:
  """The plan for machines: sizes in bytes, times in seconds."""
  stages = []
  for stage in plan.stages:
    phases = []
    for phase in stage.phases:
      row = phase._asdict() | {'memory_total': memory(phase)}
      row['cost'] = phase.cost._asdict() | {
        'collectives': [
          dict(kind=kind, devices=n, bytes=size)
          for (kind, n), size in phase.cost.collectives.items()
        ]
      }
      if plan.chip:
        row['estimate'] = time(phase, plan.chip, plan.devices)._asdict()
      phases.append(row)
    stages.append(
      stage._asdict() | {'phases': phases, 'fixes': fixes(stage, plan.chip)}
    )
  chip = plan.chip and plan.chip._asdict()
  return json.dumps(
    plan._asdict() | {'chip': chip, 'stages': stages, 'status': status(plan)},
    indent=2,
  )
