"""Pictures of findings, in the colours of `jopd report`."""

import pathlib

import matplotlib
from matplotlib.figure import Figure

from jopd.report.panels import LIGHT, Panel, draw_panels, field
from jopd.report.runs import read_runs

PANELS = (
  Panel('right rollouts, share', lines=(field('reward'),), top=1.0),
  Panel('own loss', lines=(field('loss'),)),
  Panel('exact reverse KL, nats', lines=(field('reverse_kl'),)),
  Panel('mass on teacher top 16', lines=(field('target_mass'),), top=1.0),
)


def draw(name: str, finding, seeds: dict[str, dict], workdir: pathlib.Path):
  """The picture of a finding: its variants, and for some its first runs."""
  folder = workdir / 'pictures'
  folder.mkdir(parents=True, exist_ok=True)
  with matplotlib.rc_context(LIGHT.settings()):
    save(draw_variants(finding, seeds), folder / f'{name}.png')
    if getattr(finding, 'CURVES', False):
      runs = [
        workdir / f'seed{min(seeds)}' / name / v for v in finding.VARIANTS
      ]
      figure = draw_panels(read_runs(runs), LIGHT, panels=PANELS)
      figure.set_figwidth(8.8)  # room for the names of the variants
      save(figure, folder / f'{name}-curves.png')


def save(figure: Figure, path: pathlib.Path) -> None:
  """Writes a picture, small and without a date in it."""
  figure.savefig(path, dpi=90, metadata={'Software': None})


def draw_variants(finding, seeds: dict[str, dict]) -> Figure:
  """A line per variant, a dot per seed; a hollow one for where it began."""
  metric = finding.SHOWN[0]
  before = metric.replace('_after', '_before')
  rows = next(iter(seeds.values()))['rows']
  variants = [name for name, row in rows.items() if metric in row]
  figure = Figure((6.4, 0.9 + 0.3 * len(variants)), layout='constrained')
  axis = figure.subplots()
  for place, variant in enumerate(variants):
    for found in seeds.values():
      row = found['rows'][variant]
      if before != metric and before in row:
        axis.plot(row[before], place, 'o', ms=7, mfc='none', mec=LIGHT.faint)
      axis.plot(row[metric], place, 'o', ms=7, color=LIGHT.color(0), alpha=0.8)
  axis.set_yticks(range(len(variants)), variants)
  axis.set_ylim(len(variants) - 0.5, -0.5)
  if metric == 'variance':
    axis.set_xscale('log')
  else:
    axis.set_xlim(-0.03, 1.03)
  words = metric.replace('_', ' ')
  hollow = ', hollow: before' if before != metric else ''
  axis.set_xlabel(f'{words}, a dot per seed{hollow}')
  return figure
