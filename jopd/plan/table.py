"""A plan as text and as JSON, and what to change where it does not fit."""

import json
from typing import NamedTuple

from jopd.plan.chips import Chip
from jopd.plan.plan import RunPlan, StagePlan
from jopd.plan.program import Phase

SPARE = 0.1  # of a device's memory: what allocators and runtimes need
_GIB = 2**30


class Time(NamedTuple):
  """Estimated seconds of a phase in one step; no device has run it.

  Attributes:
    least: if what travels between devices hides behind the work.
    most: if nothing of it does.
  """

  least: float
  most: float


def time(phase: Phase, chip: Chip, devices: int) -> Time:
  """How long a phase should take in one step, all of its calls together."""
  cost = phase.cost
  # The compiler's cycles, where it counts them, know of what is inefficient.
  work = phase.kernels / devices / chip.flops
  work += cost.cycles / chip.clock if chip.clock else 0.0
  work = max(
    work,
    phase.flops / devices / chip.flops,
    cost.traffic / chip.bandwidth,
  )
  links = travels(phase) / chip.links
  times = phase.times
  return Time(times * max(work, links), times * (work + links))


def travels(phase: Phase) -> float:
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
  found = phase.cost.collectives.items()
  return sum((times.get(k, once)(n) * size for (k, n), size in found), 0.0)


def memory(phase: Phase) -> float:
  """Bytes of a device."""
  return sum(phase.memory.values())


def status(found: RunPlan) -> str:
  """'ok' with SPARE to spare, 'warn' with less, 'refuse' if it does not fit."""
  if any(stage.refused for stage in found.stages):
    return 'refuse'
  if found.chip is None:
    return 'ok'
  peak = max(memory(p) for stage in found.stages for p in stage.phases)
  share = peak / found.chip.memory
  return 'refuse' if share > 1 else 'warn' if share > 1 - SPARE else 'ok'


def page(found: RunPlan) -> str:
  """The plan as text."""
  mesh = ' x '.join(f'{axis} {n}' for axis, n in found.mesh.items())
  chip = found.chip
  if chip:
    lines = [
      f'{found.devices} x {chip.name}, {chip.memory / _GIB:.0f} GiB,'
      f' {chip.flops / 1e12:.0f} TFLOP/s, {chip.bandwidth / 1e9:,.0f} GB/s;'
      f' mesh: {mesh}'
    ]
  else:
    lines = [f'{found.devices} devices of an unknown chip; mesh: {mesh}']
  for stage in found.stages:
    lines += ['', *_stage(stage, found)]
  verdict = {
    'ok': f'fits, with {SPARE:.0%} to spare' if chip else 'compiles',
    'warn': f'fits, with less than {SPARE:.0%} to spare',
    'refuse': 'does not fit',
  }
  return '\n'.join([*lines, '', verdict[status(found)]])


_HEADER = (
  f'  {"":8} {"times":>6}  {"held":>7} {"inputs":>7} {"results":>7}'
  f' {"temp.":>7} {"GiB":>7}   {"TFLOP":>8} {"GB":>8} {"links":>7}'
  f'  {"seconds":>15} {"useful":>13}'
)


def _stage(stage: StagePlan, found: RunPlan) -> list[str]:
  """A stage as lines: its phases, their sum, what to change."""
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
    row += f'   {phase.flops * phase.times / found.devices / 1e12:8.2f}'
    row += f' {phase.cost.traffic * phase.times / 1e9:8.1f}'
    row += f' {travels(phase) * phase.times / 1e9:7.1f}'
    if found.chip:
      own = time(phase, found.chip, found.devices)
      total = Time(total.least + own.least, total.most + own.most)
      row += f'  {_range(own, 2):>15} {_useful(phase, own, found):>13}'
    lines.append(row)
  if found.chip and stage.phases:
    lines.append(f'  a step takes {_range(total, 1)} s, estimated')
  if stage.refused:
    name, words = stage.refused
    lines.append(f'  {name:8} does not fit: {words}')
  return lines + [f'  change   {fix}' for fix in fixes(stage, found.chip)]


def _useful(phase: Phase, own: Time, found: RunPlan) -> str:
  """The share of the peak: of the memory in decoding, else of the products."""
  if phase.least is not None:
    best = phase.times * phase.least / found.chip.bandwidth
  else:
    best = phase.times * phase.useful / found.devices / found.chip.flops
  shares = sorted({f'{best / seconds:.0%}' for seconds in own if seconds})
  return ' to '.join(shares)


def _range(own: Time, digits: int) -> str:
  least, most = (f'{x:.{digits}f}' for x in own)
  return least if least == most else f'{least} to {most}'


_FIXES = {
  ('prefill', 'temporaries'): 'config.{stage}.batch_size: fewer prompts',
  ('prefill', 'results'): 'config.{stage}.slots: fewer rows at a time',
  ('decode', 'inputs'): 'config.{stage}.slots: fewer rows at a time; or more'
  ' devices in mesh.fsdp or mesh.tensor',
  ('decode', 'temporaries'): 'config.{stage}.slots: fewer rows at a time',
  ('teacher', 'temporaries'): 'config.{stage}.micro_batches: more parts',
  ('teacher', 'results'): 'config.{stage}.updates or batch_size: fewer rows',
  ('learner', 'temporaries'): 'config.{stage}.micro_batches: more parts;'
  " config.remat = 'full'; config.{stage}.chunk_tokens: fewer",
  ('learner', 'inputs'): 'config.{stage}.updates or batch_size: fewer rows',
}


def fixes(stage: StagePlan, chip: Chip | None) -> list[str]:
  """What to change where a phase needs more than there is."""
  found = []
  if stage.refused:
    name = stage.refused[0]
    kind = 'inputs' if name == 'decode' else 'temporaries'
    found.append((name, kind))
  for phase in stage.phases:
    if chip and memory(phase) > (1 - SPARE) * chip.memory:
      found.append((phase.name, max(phase.memory, key=phase.memory.get)))
  held = 'config.mesh.fsdp: more devices, between which the state is divided'
  named = [_FIXES.get(key, held).format(stage=stage.name) for key in found]
  return list(dict.fromkeys(named))


def as_json(found: RunPlan) -> str:
  """The plan for machines: sizes in bytes, times in seconds."""
  stages = []
  for stage in found.stages:
    phases = []
    for phase in stage.phases:
      row = phase._asdict() | {'memory_total': memory(phase)}
      row['cost'] = phase.cost._asdict() | {
        'collectives': [
          dict(kind=kind, devices=n, bytes=size)
          for (kind, n), size in phase.cost.collectives.items()
        ]
      }
      if found.chip:
        row['estimate'] = time(phase, found.chip, found.devices)._asdict()
      phases.append(row)
    stages.append(
      stage._asdict() | {'phases': phases, 'fixes': fixes(stage, found.chip)}
    )
  chip = found.chip and found.chip._asdict()
  return json.dumps(
    found._asdict() | {'chip': chip, 'stages': stages, 'status': status(found)},
    indent=2,
  )
