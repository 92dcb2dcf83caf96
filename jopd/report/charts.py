"""The charts of a report: runs in, figures out, None without data."""

from collections.abc import Callable, Sequence
import functools
import math
from typing import NamedTuple

from matplotlib.figure import Figure
import numpy as np

from jopd.report import runs as records
from jopd.report.panels import (
  Line,
  Panel,
  Theme,
  draw_panels,
  field,
)
from jopd.report.runs import Run


class Chart(NamedTuple):
  """A chart: its file name, its texts, and the function that draws it."""

  name: str
  title: str
  caption: str
  draw: Callable[[Sequence[Run], Theme], Figure | None]


def _panels(*panels: Panel) -> Callable[[Sequence[Run], Theme], Figure | None]:
  return functools.partial(draw_panels, panels=panels)


def _entropy_gap(row: records.Row) -> float:
  student = records.number(row, 'student_entropy')
  return student - records.number(row, 'target_entropy')


def draw_gap_recovered(runs: Sequence[Run], theme: Theme) -> Figure | None:
  """One bar per run, stage and teacher."""
  bars = [
    (index, gap)
    for index, run in enumerate(runs)
    for gap in records.gaps(run)
    if math.isfinite(gap.recovered)
  ]
  if not bars:
    return None
  percent = [100 * gap.recovered for _, gap in bars]
  figure = Figure((6.4, 1.1 + 0.45 * len(bars)), layout='constrained')
  axis = figure.subplots()
  colors = [theme.color(index) for index, _ in bars]
  axis.barh(range(len(bars)), percent, height=0.6, color=colors)
  axis.axvline(100, color=theme.faint, lw=1.2, ls='--')
  edge = max(100, *percent)
  for place, (_, gap) in enumerate(bars):
    axis.annotate(
      f'{percent[place]:.0f} %  ({gap.before:.3g} \N{RIGHTWARDS ARROW} '
      f'{gap.after:.3g}, {gap.teacher} {gap.target:.3g})',
      (edge, place),
      xytext=(8, 0),
      textcoords='offset points',
      va='center',
      fontsize=9,
    )
  _label_bars(axis, [_bar_name(runs, gap.run, gap.stage) for _, gap in bars])
  axis.set_xlim(min(0, *percent), 1.8 * edge)
  axis.set_xlabel('% of the gap between student before and teacher')
  return figure


# Sampling first, which should take most of the time. Other phases follow.
_PHASES = ('rollout', 'teacher', 'learner', 'reward', 'eval', 'data', 'save')


def draw_time(runs: Sequence[Run], theme: Theme) -> Figure | None:
  """One stacked bar per run and stage, one colour per phase."""
  bars: list[tuple[str, dict[str, float]]] = []
  for run in runs:
    for stage, seconds in records.seconds(run).items():
      bars.append((_bar_name(runs, run.name, stage), seconds))
  if not bars:
    return None
  phases = {phase: None for _, seconds in bars for phase in seconds}
  order = [phase for phase in _PHASES if phase in phases]
  order += sorted(phases.keys() - set(order))
  longest = max(sum(seconds.values()) for _, seconds in bars)
  unit, scale = ('minutes', 60) if longest > 120 else ('seconds', 1)

  figure = Figure((6.4, 1.5 + 0.45 * len(bars)), layout='constrained')
  axis = figure.subplots()
  left = np.zeros(len(bars))
  for index, phase in enumerate(order):
    widths = np.array([seconds.get(phase, 0.0) for _, seconds in bars])
    axis.barh(
      np.arange(len(bars)),
      widths / scale,
      left=left / scale,
      height=0.6,
      color=theme.color(index),
      edgecolor=theme.ground,
      label=phase,
    )
    for place, (_, seconds) in enumerate(bars):
      if widths[place] > 0.06 * longest:
        axis.text(
          (left[place] + widths[place] / 2) / scale,
          place,
          f'{100 * widths[place] / sum(seconds.values()):.0f} %',
          ha='center',
          va='center',
          fontsize=9,
          color=theme.ground,
        )
    left += widths
  _label_bars(axis, [name for name, _ in bars])
  axis.set_xlabel(f'{unit} of wall time')
  figure.legend(loc='outside upper left', ncols=4)
  return figure


def _bar_name(runs: Sequence[Run], run: str, stage: str) -> str:
  return stage if len(runs) == 1 else f'{run}, {stage}'


def _label_bars(axis, names: Sequence[str]) -> None:
  axis.set_yticks(range(len(names)), names)
  axis.set_ylim(len(names) - 0.5, -0.5)
  axis.grid(axis='y', visible=False)


def draw_accuracy(runs: Sequence[Run], theme: Theme) -> Figure | None:
  """Greedy accuracy and every measured avg@k."""
  panels = [Panel('greedy accuracy', evaluated='greedy_accuracy', top=1)]
  for name in records.metric_names(runs, 'avg_at_'):
    label = name.replace('avg_at_', 'avg@')
    panels.append(Panel(label, evaluated=name, top=1))
  return draw_panels(runs, theme, panels=panels)


def draw_pass_at_k(runs: Sequence[Run], theme: Theme) -> Figure | None:
  """pass@k against k: the student before and after, and the other models."""
  names = records.metric_names(runs, 'pass_at_')
  ks = [int(name.removeprefix('pass_at_')) for name in names]
  if len(ks) < 2:
    return None
  figure = Figure((6.4, 3.2), layout='constrained')
  axis = figure.subplots()
  for index, run in enumerate(runs):
    for label, values in _last_pass_at(run, names).items():
      look = {'color': theme.color(index), 'lw': 2, 'marker': 'o', 'ms': 4.5}
      if label.endswith(' before'):
        look |= {'ls': ':', 'alpha': 0.8}
      elif not label.endswith(' after'):
        look |= {'ls': '--', 'lw': 1.2, 'ms': 3, 'color': theme.faint}
      label = label if len(runs) == 1 else f'{run.name}: {label}'
      axis.plot(ks, values, label=label, **look)
  axis.set_xscale('log', base=2)
  axis.set_xticks(ks, [str(k) for k in ks])
  axis.minorticks_off()
  axis.set_ylim(-0.015, 1.03)
  axis.set_xlabel('k, samples per prompt')
  axis.set_ylabel('pass@k')
  figure.legend(loc='outside upper left', ncols=3 if len(runs) == 1 else 2)
  return figure


def _last_pass_at(run: Run, names: Sequence[str]) -> dict[str, list[float]]:
  """Label -> pass@k for each name, in the last stage that measured any."""
  lines: dict[str, dict[str, float]] = {}
  stage = None
  for name in names:
    for model, curve in records.evaluations(run, name)[-1:]:
      stage = curve.stage
      for label, place in ((f'{model} before', 0), (f'{model} after', -1)):
        lines.setdefault(label, {})[name] = curve.known[place]
    for model, curve in records.evaluations(run, name, references=True):
      if curve.stage == stage:
        lines.setdefault(model, {})[name] = curve.known[-1]
  return {
    label: [values.get(name, math.nan) for name in names]
    for label, values in lines.items()
  }


CHARTS = (
  Chart(
    'accuracy',
    'Accuracy',
    'Fraction of prompts that the student solves. Dashed: the student at the '
    'start of a stage, and its teacher. Shaded: 95 % interval over prompts.',
    draw_accuracy,
  ),
  Chart(
    'gap_recovery',
    'Gap recovered',
    '(after - before) / (teacher - before), per stage. Beyond 100 % the '
    'student has overtaken its teacher.',
    draw_gap_recovered,
  ),
  Chart(
    'pass_at_k',
    'pass@k',
    'Probability that one of k samples is correct, in the last stage. If it '
    'falls at large k while accuracy rises, the student loses diversity.',
    draw_pass_at_k,
  ),
  Chart(
    'reverse_kl',
    'Reverse KL to the target',
    'Exact KL(student || target) over the full vocabulary, on the tokens of '
    'the loss. If it rises while the loss falls, the loss is biased.',
    _panels(Panel('reverse KL, nats per token', (field('reverse_kl'),))),
  ),
  Chart(
    'overlap',
    'Top-16 overlap',
    "Fraction of the target's 16 most likely tokens among the student's 16, "
    "and the student's probability of them. If it does not rise, the two "
    'models are too different.',
    _panels(
      Panel('overlap ratio', (field('overlap'),), top=1),
      Panel(
        'student mass',
        (
          field('target_mass', "on the target's 16"),
          field('overlap_mass', 'on the shared ones'),
        ),
        top=1,
      ),
    ),
  ),
  Chart(
    'entropy',
    'Entropy',
    'Of the next token, student and target, and their difference. A collapse '
    'towards 0 or a climb towards log V is a warning.',
    _panels(
      Panel(
        'entropy, nats per token',
        (
          field('student_entropy', 'student'),
          field('target_entropy', 'target'),
        ),
      ),
      Panel(
        'student \N{MINUS SIGN} target, nats', (Line('gap', _entropy_gap),)
      ),
    ),
  ),
  Chart(
    'length',
    'Response length and truncation',
    'Tokens per response, stop token included, and the fraction of responses '
    'that reach the length limit. Above 20 % the student learns not to stop.',
    _panels(
      Panel('response length, tokens', (field('response_length'),)),
      Panel('clipped ratio', (field('completions/clipped_ratio'),), top=1),
    ),
  ),
  Chart(
    'reward',
    'Reward of the rollouts',
    'Mean reward of the sampled responses, at the training temperature.',
    _panels(Panel('reward', (field('reward'),))),
  ),
  Chart(
    'optimization',
    'Loss and gradient',
    'The loss, and the global norm of its gradient before clipping.',
    _panels(
      Panel('loss', (field('loss'),)),
      Panel('gradient norm', (field('grad_norm'),)),
    ),
  ),
  Chart(
    'time',
    'Time budget',
    'Wall time of each stage by phase.',
    draw_time,
  ),
)
