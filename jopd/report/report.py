"""Reports of runs: PNG charts and one self-contained HTML page."""

import base64
from collections.abc import Mapping, Sequence
import html
import io
import json
import math
import os
import pathlib
from typing import Any

from jopd.report.runs import Gap, Run, gaps, read_runs

_STYLE = """
:root { color-scheme: light dark; --ground: #f6f8fa; --card: #fff;
  --ink: #1b1f24; --faint: #57606a; --line: #d8dee4; }
@media (prefers-color-scheme: dark) { :root { --ground: #0d1117;
  --card: #161b22; --ink: #e6edf3; --faint: #9aa4af; --line: #30363d; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 48rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
h1 { font-size: 1.5rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 0 0 .25rem; }
section { background: var(--card); border: 1px solid var(--line);
  border-radius: .6rem; padding: 1rem; margin: 1rem 0; }
p { margin: 0 0 .75rem; color: var(--faint); font-size: .9rem;
  max-width: 44rem; }
img { display: block; width: 100%; min-width: 22rem; height: auto; }
.wide { display: block; overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { text-align: left; padding: .3rem 1.2rem .3rem 0;
  border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--faint); font-weight: 500; }
td { font-variant-numeric: tabular-nums; overflow-wrap: break-word;
  max-width: 24rem; }
tr:last-child > * { border-bottom: 0; }
pre { font-size: .8rem; line-height: 1.4; margin: .5rem 0 0;
  overflow-x: auto; }
summary { cursor: pointer; }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{sections}
</main>
</body>
</html>
"""


def report(
  runs: Sequence[str | os.PathLike], out: str | os.PathLike | None = None
) -> pathlib.Path:
  """Writes report.html and its charts; several runs share the same axes.

  A chart with data is drawn as `report/<name>.png` and
  `report/<name>-dark.png`. The page contains all charts and loads nothing from
  the network. For several runs the names are comparison.html and comparison/,
  so that the report of a run remains. The same input gives the same bytes.

  Args:
    runs: run folders, with metrics.jsonl and, if there, timings.jsonl,
      summary.json (its "versions" go to the bottom) and config.json.
    out: folder to write to; default: that of the first run.

  Returns:
    The path of the page.

  Raises: WrongInputError if there is no run, or a file is missing or damaged.
  """
  read = read_runs(runs)
  name = 'report' if len(read) == 1 else 'comparison'
  folder = pathlib.Path(runs[0] if out is None else out)
  (folder / name).mkdir(parents=True, exist_ok=True)
  sections = [
    _section('Outcome', _outcome([gap for run in read for gap in gaps(run)])),
    _section('Summary', _summary(read)),
    *_draw_charts(read, folder / name),
    *(_section(f'Settings of {run.name}', _settings(run)) for run in read),
  ]
  page = _PAGE.format(
    title=html.escape(', '.join(run.name for run in read)),
    style=_STYLE,
    sections='\n'.join(section for section in sections if section),
  )
  path = folder / f'{name}.html'
  path.write_text(page, encoding='utf-8')
  return path


def _draw_charts(runs: Sequence[Run], folder: pathlib.Path) -> list[str]:
  """Draws each chart that has data, for a light and a dark page."""
  # Imported here, as matplotlib takes long to import.
  import matplotlib

  from jopd.report import charts, panels

  sections = []
  for chart in charts.CHARTS:
    sources = []
    for theme in (panels.LIGHT, panels.DARK):
      with matplotlib.rc_context(theme.settings()):
        figure = chart.draw(runs, theme)
        if figure is None:
          break
        png = io.BytesIO()
        # A Figure without pyplot draws with Agg and leaves no global state.
        figure.savefig(png, format='png', dpi=180, metadata={'Software': None})
      suffix = '' if theme is panels.LIGHT else '-dark'
      (folder / f'{chart.name}{suffix}.png').write_bytes(png.getvalue())
      data = base64.b64encode(png.getvalue()).decode('ascii')
      sources.append(f'data:image/png;base64,{data}')
    if sources:
      light, dark = sources
      picture = (
        f'<p>{html.escape(chart.caption)}</p><picture class="wide"><source '
        f'media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{html.escape(chart.title)}"></picture>'
      )
      sections.append(_section(chart.title, picture))
  return sections


def _section(title: str, body: str) -> str:
  """A titled card; nothing for an empty body."""
  if not body:
    return ''
  return f'<section><h2>{html.escape(title)}</h2>{body}</section>'


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
  """An HTML table; the first cell of a row names it."""
  if not rows:
    return ''
  lines = [''.join(f'<th>{html.escape(name)}</th>' for name in head)] * any(
    head
  )
  for name, *cells in rows:
    shown = ''.join(f'<td>{html.escape(_text(cell))}</td>' for cell in cells)
    lines.append(f'<th>{html.escape(name)}</th>{shown}')
  body = ''.join(f'<tr>{line}</tr>' for line in lines)
  return f'<div class="wide"><table>{body}</table></div>'


def _text(value: Any) -> str:
  """The text of a cell: four digits of a float, a dash for None and NaN."""
  if value is None or (isinstance(value, float) and math.isnan(value)):
    return '\N{EN DASH}'
  if isinstance(value, float):
    return f'{value:.4g}'
  return value if isinstance(value, str) else json.dumps(value)


def _outcome(stage_gaps: Sequence[Gap]) -> str:
  """Student before and after, and its teacher, per run and stage."""
  head = 'run, stage, metric, before, after, teacher, gap recovered'.split(', ')
  rows = [
    (
      gap.run,
      gap.stage,
      gap.metric.replace('_at_', '@').replace('_', ' '),
      gap.before,
      gap.after,
      f'{gap.target:.4g} ({gap.teacher})',
      f'{gap.recovered:.0%}' if math.isfinite(gap.recovered) else None,
    )
    for gap in stage_gaps
  ]
  return _table(head, rows)


def _summary(runs: Sequence[Run]) -> str:
  """summary.json, one column per run, nested names joined by dots."""
  flat = [
    _flatten({k: v for k, v in run.summary.items() if k != 'versions'})
    for run in runs
  ]
  names = dict.fromkeys(name for entries in flat for name in entries)
  rows = [(name, *(entries.get(name) for entries in flat)) for name in names]
  return _table(['', *(run.name for run in runs)], rows)


def _settings(run: Run) -> str:
  """Versions and config of a run, folded away."""
  blocks = {'versions': run.summary.get('versions'), 'config': run.config}
  return ''.join(
    f'<details><summary>{name}</summary><pre>'
    f'{html.escape(json.dumps(value, indent=2))}</pre></details>'
    for name, value in blocks.items()
    if value
  )


def _flatten(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """{'a': {'b': 1}} -> {'a.b': 1}."""
  flat = {}
  for name, value in tree.items():
    if isinstance(value, dict):
      flat |= _flatten(value, f'{prefix}{name}.')
    else:
      flat[prefix + name] = value
  return flat
