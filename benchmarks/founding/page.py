"""The page of the findings: its lists and tables, made from the results."""

import inspect
import pathlib
import re

from founding import FINDINGS


def refill(path: pathlib.Path, results: dict[str, dict]) -> None:
  """Writes a page's measured parts anew; the text around them stays.

  Args:
    path: of a page with pairs of lines `<!-- NAME -->` and `<!-- end -->`,
      NAME a finding or 'summary'. What stands between them is replaced.
    results: of results.json, finding -> seed -> what it showed.

  Raises: ValueError when a finding has no such pair, or a pair no finding.
  """
  text = path.read_text()
  parts = {'summary': summary(results)}
  parts |= {name: section(name, results.get(name, {})) for name in FINDINGS}
  pattern = re.compile(r'<!-- (\w+) -->\n.*?<!-- end -->\n', re.DOTALL)
  found = pattern.findall(text)
  if sorted(found) != sorted(parts):
    raise ValueError(
      f'{path} has parts {", ".join(found)}; they must be'
      f' {", ".join(parts)}, each once'
    )
  fill = lambda m: f'<!-- {m[1]} -->\n\n{parts[m[1]]}\n\n<!-- end -->\n'
  path.write_text(pattern.sub(fill, text))


def summary(results: dict[str, dict]) -> str:
  """The table of all findings."""
  lines = ['| finding | claim | passed, of seeds run |', '|---|---|---|']
  for name, finding in FINDINGS.items():
    claim = inspect.getdoc(finding).splitlines()[0]
    seeds = results.get(name, {}).values()
    passed = sum(found['passed'] for found in seeds)
    lines.append(f'| `{name}` | {claim} | {passed} of {len(seeds)} |')
  return '\n'.join(lines)


def section(name: str, seeds: dict[str, dict]) -> str:
  """The expected statements, how many seeds they hold with, and numbers."""
  if not seeds:
    return '**Not measured yet.**'
  lines = ['Expected:', '']
  for statement in FINDINGS[name].SIGNATURE:
    held = sum(found['statements'][statement] for found in seeds.values())
    lines.append(f'- {statement}: **{held} of {len(seeds)} seeds**')
  return '\n'.join([*lines, '', table(name, seeds)])


def table(name: str, seeds: dict[str, dict]) -> str:
  """A row per variant; the values of the seeds divided by slashes."""
  shown = FINDINGS[name].SHOWN
  lines = [
    ' | '.join(['| variant', *(n.replace('_', ' ') for n in shown)]) + ' |',
    '|---' * (1 + len(shown)) + '|',
  ]
  seeds = dict(sorted(seeds.items()))
  for variant in next(iter(seeds.values()))['rows']:
    rows = [found['rows'][variant] for found in seeds.values()]
    cells = [' / '.join(_digits(row.get(n)) for row in rows) for n in shown]
    lines.append(' | '.join([f'| {variant}', *cells]) + ' |')
  return '\n'.join(lines)


def _digits(value: float | None) -> str:
  if value is None:
    return '-'
  return f'{value:.3f}' if abs(value) < 10 else f'{value:.0f}'
