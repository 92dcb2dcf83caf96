"""Panels of curves over the steps of runs.

With one run, each line of a panel has its colour; with several, each run has
its colour, and further lines are dashed.
"""

from collections.abc import Callable, Sequence
import functools
from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
import numpy as np

from jopd.report import runs as records
from jopd.report.runs import Row, Run


class Theme(NamedTuple):
  """Colours of a chart; `series` are safe for colour-blind readers."""

  name: str
  ground: str
  ink: str
  faint: str
  grid: str
  series: Sequence[str]

  def color(self, index: int) -> str:
    """The colour of a series; colours repeat."""
    return self.series[index % len(self.series)]

  def settings(self) -> dict[str, object]:
    """The rcParams of matplotlib, for `matplotlib.rc_context`."""
    return {
      'figure.facecolor': self.ground,
      'axes.facecolor': self.ground,
      'savefig.facecolor': self.ground,
      'text.parse_math': False,  # names from files are not formulas
      'text.color': self.ink,
      'axes.labelcolor': self.faint,
      'axes.edgecolor': self.grid,
      'xtick.color': self.grid,
      'ytick.color': self.grid,
      'xtick.labelcolor': self.faint,
      'ytick.labelcolor': self.faint,
      'grid.color': self.grid,
      'grid.linewidth': 0.8,
      'axes.grid': True,
      'axes.axisbelow': True,
      'axes.spines.top': False,
      'axes.spines.right': False,
      'axes.spines.left': False,
      'xtick.major.size': 0,
      'ytick.major.size': 0,
      'axes.labelsize': 9,
      'xtick.labelsize': 9,
      'ytick.labelsize': 9,
      'legend.frameon': False,
      'legend.fontsize': 9,
      'legend.handlelength': 1.5,
      'legend.columnspacing': 1.4,
      'lines.solid_capstyle': 'round',
      'font.family': 'DejaVu Sans',  # comes with matplotlib
    }


# Okabe and Ito's hues; on a dark ground the same, lightened.
LIGHT = Theme(
  name='light',
  ground='#ffffff',
  ink='#1b1f24',
  faint='#57606a',
  grid='#e4e7eb',
  series=(
    '#0072b2 #d55e00 #009e73 #a3498b #b8860b #3fa7e0 #7b828a #5b3a29'.split()
  ),
)
DARK = Theme(
  name='dark',
  ground='#161b22',
  ink='#e6edf3',
  faint='#9aa4af',
  grid='#2b323b',
  series=(
    '#58a6e8 #ff8b4d #2fc296 #dd8fc0 #e3b341 #9bd3f5 #8b949e #c69c7b'.split()
  ),
)


class Line(NamedTuple):
  """One line of a panel: a label, and a row's value (NaN: none)."""

  label: str
  value: Callable[[Row], float]


class Panel(NamedTuple):
  """One pair of axes, of train rows or of eval rows.

  Attributes:
    ylabel: quantity and unit.
    lines: of the train rows, smoothed if there are many.
    evaluated: a metric of the eval rows instead: of the student with its
      interval, `<name>_low` to `_high`, of the other models as levels.
    top: maximum of the quantity, if it has one.
  """

  ylabel: str
  lines: tuple[Line, ...] = ()
  evaluated: str = ''
  top: float | None = None


def field(name: str, label: str = '') -> Line:
  """A line of one metric."""
  return Line(label, functools.partial(records.number, name=name))


def draw_panels(
  runs: Sequence[Run], theme: Theme, *, panels: Sequence[Panel]
) -> Figure | None:
  """The panels with data, below each other, over one axis of steps."""
  stages = [_stages_of(panel, runs) for panel in panels]
  shown = [panel for panel, names in zip(panels, stages, strict=True) if names]
  if not shown:
    return None
  spans = records.timeline(runs, set().union(*stages))
  height = 1.8 * len(shown) + (1.2 if len(shown) == 1 else 0.9)
  figure = Figure((6.4, height), layout='constrained')
  axes = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
  for axis, panel in zip(axes, shown, strict=True):
    for index, run in enumerate(runs):
      if panel.evaluated:
        _draw_evaluated(axis, run, panel, spans, theme, theme.color(index))
      else:
        colors = [
          theme.color(place if len(runs) == 1 else index)
          for place in range(len(panel.lines))
        ]
        _draw_trained(axis, run, panel, spans, colors, dash=len(runs) > 1)
    _set_limits(axis, panel)
    _name_lines(axis, panel, theme, one_run=len(runs) == 1)
  _mark_stages(axes, spans, theme)
  if len(runs) > 1:
    _name_runs(figure, runs, theme)
  return figure


def _stages_of(panel: Panel, runs: Sequence[Run]) -> set[str]:
  """The stages in which a panel has data."""
  names: set[str] = set()
  for run in runs:
    for _, curve in records.evaluations(run, panel.evaluated):
      names.add(curve.stage)
    for line in panel.lines:
      names |= {curve.stage for curve in records.curves(run, line.value)}
  return names


def _draw_trained(axis, run, panel, spans, colors, *, dash):
  """Train rows; if there are many, faint under a bold running mean."""
  for place, line in enumerate(panel.lines):
    look = {'color': colors[place], 'ls': '--' if dash and place else '-'}
    for stage, steps, values in records.curves(run, line.value):
      x, width = spans[stage][0] + steps, len(steps) // 25
      if width > 1:
        axis.plot(x, values, color=colors[place], lw=0.7, alpha=0.25)
        values = _running_mean(values, width)
      axis.plot(x, values, lw=2, marker='o' if len(x) == 1 else '', **look)


def _running_mean(values: np.ndarray, width: int) -> np.ndarray:
  """Centred mean of the finite values among `width` neighbours."""
  finite = np.isfinite(values)
  total = np.convolve(np.where(finite, values, 0), np.ones(width), 'same')
  count = np.convolve(finite, np.ones(width), 'same')
  return np.where(count > 0.5, total / np.maximum(count, 1), np.nan)


def _draw_evaluated(axis, run, panel, spans, theme, color):
  """The student, its start as a level, and the other models as levels."""
  name = panel.evaluated
  low, high = (
    {curve.stage: curve for _, curve in records.evaluations(run, name + end)}
    for end in ('_low', '_high')
  )
  for model, curve in records.evaluations(run, name):
    stage, known = curve.stage, np.isfinite(curve.values)
    x = spans[stage][0] + curve.steps[known]
    if stage in low and stage in high:
      ends = low[stage].values[known], high[stage].values[known]
      axis.fill_between(x, *ends, color=color, alpha=0.15, lw=0)
    axis.plot(x, curve.known, color=color, lw=2, marker='o', ms=4.5)
    label = f'{model} before'
    _draw_level(axis, spans[stage], curve.known[0], label, theme)
  for model, curve in records.evaluations(run, name, references=True):
    if curve.stage in spans:
      _draw_level(axis, spans[curve.stage], curve.known[-1], model, theme)


def _draw_level(axis, span, value, label, theme):
  """A dashed level across a stage, named at its right end, with its value."""
  text = f'{label} {value:.3g}'
  if any(text == drawn.get_text() for drawn in axis.texts):
    return  # two runs with the same teacher
  axis.plot(span, [value, value], '--', color=theme.faint, lw=1.2, zorder=1.5)
  axis.annotate(
    text,
    (span[1], value),
    xytext=(-2, 3),
    textcoords='offset points',
    ha='right',
    fontsize=9,
    color=theme.faint,
  )


def _set_limits(axis, panel):
  """From 0 if no value is below, with room for the names of stages."""
  axis.set_ylabel(panel.ylabel)
  bottom, top = axis.get_ylim()
  bottom = 0 if panel.top is not None else min(bottom, 0)
  top += 0.12 * (top - bottom)
  if panel.top is not None:
    top = min(panel.top * 1.06, top)
  # A line along 0 keeps its full width.
  axis.set_ylim(bottom - 0.015 * (top - bottom), top)


def _name_lines(axis, panel, theme, *, one_run):
  """A legend above a panel of several lines."""
  if len(panel.lines) < 2:
    return
  handles = []
  for place, line in enumerate(panel.lines):
    color = theme.color(place) if one_run else theme.faint
    style = '--' if place and not one_run else '-'
    handles.append(
      Line2D([], [], lw=2, color=color, ls=style, label=line.label)
    )
  axis.legend(
    handles=handles,
    loc='lower left',
    bbox_to_anchor=(0, 1),
    borderaxespad=0.1,
    ncols=len(handles),
  )


def _name_runs(figure, runs, theme):
  """A legend above the figure."""
  figure.legend(
    handles=[
      Line2D([], [], lw=2.5, color=theme.color(i), label=run.name)
      for i, run in enumerate(runs)
    ],
    loc='outside upper left',
    ncols=min(4, len(runs)),
  )


def _mark_stages(axes, spans, theme):
  """A line where a stage starts, and its name beside it."""
  end = max(end for _, end in spans.values())
  axes[-1].set_xlim(-0.012 * end, 1.012 * end)
  axes[-1].xaxis.set_major_locator(MaxNLocator(8, integer=True))
  if len(spans) == 1:
    axes[-1].set_xlabel(f'step of {next(iter(spans))}')
    return
  axes[-1].set_xlabel('step, stages one after another')
  for axis in axes:
    for start, _ in list(spans.values())[1:]:
      axis.axvline(start, color=theme.faint, lw=0.8)
  for stage, (start, _) in spans.items():
    axes[0].annotate(
      stage,
      (start, 1),
      xycoords=axes[0].get_xaxis_transform(),
      xytext=(4, -4),
      textcoords='offset points',
      va='top',
      fontsize=9,
      color=theme.faint,
      # Hides levels behind the name.
      bbox={'facecolor': theme.ground, 'edgecolor': 'none', 'pad': 1},
      zorder=4,
    )
