"""The page of the variants: its tables, made from configs and results."""

import ast
import inspect
import json
import pathlib
import re
import textwrap

from comparison.lab import CONTROL, PLAIN, functions, methods
from jopd.evaluate.statistics import seeds_interval
from jopd.run import config as configs
from jopd.run import overrides

# Functions of plain OPD, which are not a method's own.
_PLAIN = ('reverse_kl', 'full', 'teacher', 'uniform', 'reinforce', 'log_ratio')
_PLAIN += ('student', 'sampler', 'same', 'divergence', 'policy_gradient')
_NAMES = dict(opd='plain OPD', sampled_token='the sampled token', grpo='GRPO')
_END = '<!-- end -->'


def refill(path: pathlib.Path, folder: pathlib.Path) -> None:
  """Writes what stands between `<!-- results -->` and `<!-- end -->` anew.

  Args:
    path: of the page.
    folder: of the results, a file for each method and seed.
  """
  results = [json.loads(file.read_text()) for file in folder.glob('*.json')]
  pattern = re.compile(rf'(<!-- results -->\n).*?({_END})', re.DOTALL)
  text, count = pattern.subn(
    lambda m: f'{m[1]}\n{tables(results)}\n\n{m[2]}', path.read_text()
  )
  if count != 1:
    raise ValueError(f'{path} needs one <!-- results --> and then {_END}')
  path.write_text(text)


def tables(results: list[dict]) -> str:
  """A table for each setting: its plain runs, then its methods."""
  failed = [r for r in results if 'error' in r]
  settings: dict[str, list[dict]] = {}
  for result in results:
    if 'error' not in result:
      settings.setdefault(result['plain']['opd']['name'], []).append(result)
  order = sorted(settings.values(), key=lambda rows: -len(rows))
  parts = [_setting(rows) for rows in order]
  parts += [
    f'- `{r["method"]}`, seed {r["seed"]}, failed: {r["error"]}' for r in failed
  ]
  return '\n\n'.join(parts)


def _setting(results: list[dict]) -> str:
  """One setting: what is the same for all of its rows, and the rows."""
  by_method: dict[str, dict[int, dict]] = {}
  for result in sorted(results, key=lambda r: (r['method'], r['seed'])):
    by_method.setdefault(result['method'], {})[result['seed']] = result
  plain = {
    kind: {r['seed']: r['plain'][kind] for r in results if kind in r['plain']}
    for kind in PLAIN
  }
  opd, first = plain['opd'], next(iter(by_method))
  seeds = sorted(opd)
  start = [_at(opd[s], 0.0) for s in seeds]
  taught = [opd[s]['teacher'] for s in seeds]
  teacher = 'itself, hinted' if None in taught else f'{_mean(taught):.3f}'
  lines = [
    f'### {_describe(first)}',
    '',
    f'Student before {_mean(start):.3f}, teacher {teacher}.'
    f' {len(seeds)} seeds.',
    '',
    '| method | paper | half-way | at the end | beside OPD | beside its plain'
    ' form | beside the control | seconds / OPD | lines: function, config |'
    ' reproduced |',
    '|---|---|---|---|---|---|---|---|---|---|',
  ]
  for kind in [kind for kind in PLAIN if plain[kind]]:
    name = _NAMES.get(kind, f'[{CONTROL}]({_link(CONTROL)}), the control')
    lines.append(_row(name, '', plain[kind], plain))
  for method, runs in by_method.items():
    title, paper = _heading(method)
    size = f'{_function_lines(method)}, {_config_lines(method)}'
    name = f'[{method}]({_link(method)}): {title}'
    lines.append(_row(name, paper, runs, plain, size, _nearest(runs)))
  return '\n'.join(lines)


def _nearest(runs) -> str:
  """The plain run that a method comes from."""
  [beside, *_] = [run['plain'] for run in runs.values()]
  return next(
    kind for kind in ('grpo', 'sampled_token', 'opd') if kind in beside
  )


def _row(name, paper, runs, plain, size='', nearest='') -> str:
  """A line of the table; the nearest plain run is named for methods only."""
  opd = plain['opd']
  costs = [run['seconds'] / opd[seed]['seconds'] for seed, run in runs.items()]
  cells = [
    name,
    paper,
    f'{_mean([_at(run, 0.5) for run in runs.values()]):.3f}',
    _interval([_at(run, 1.0) for run in runs.values()]),
    '' if runs is opd else _interval(_differences(runs, opd), sign='+'),
    ''
    if nearest in ('', 'opd')
    else _interval(_differences(runs, plain[nearest]), sign='+'),
    ''
    if runs is plain[CONTROL]
    else _interval(_differences(runs, plain[CONTROL]), sign='+'),
    f'{_mean(costs):.2f}',
    size,
    nearest and _verdict(_differences(runs, plain[nearest]), _NAMES[nearest]),
  ]
  return f'| {" | ".join(cells)} |'


def _differences(runs, others) -> list[float]:
  """Of two methods at the end, seed by seed."""
  return [_at(run, 1.0) - _at(others[seed], 1.0) for seed, run in runs.items()]


def _verdict(differences: list[float], plain: str) -> str:
  """Whether more than the plain form is seen here, which all papers report."""
  if len(differences) < 2:
    return 'one seed'
  _, low, high = seeds_interval(differences)
  if low > 0:
    return f'yes, above {plain}'
  return f'no, below {plain}' if high < 0 else 'no difference seen'


def _at(run: dict, share: float) -> float:
  """The accuracy after a share of the steps, at the evaluation nearest it."""
  steps = [int(step) for step in run['accuracy']]
  nearest = min(steps, key=lambda step: abs(step - share * max(steps)))
  return run['accuracy'][str(nearest)]


def _mean(values) -> float:
  return sum(values) / len(values)


def _interval(values: list[float], sign: str = '') -> str:
  if len(values) < 2:
    return f'{values[0]:{sign}.3f}'
  mean, low, high = seeds_interval(values)
  return f'{mean:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})'


def _describe(method: str) -> str:
  """The data and the budget of a variant's last stage."""
  config = overrides.load(f'{methods()[method]}:tiny')
  last = config[config.stages[-1]]
  several = isinstance(last.response_source, tuple | list)
  group = len(last.response_source) if several else last.group_size
  data = last.data or config.data
  return (
    f'{data.name}: {last.steps} steps of {last.batch_size} prompts, {group}'
    f' response{"s" if group > 1 else ""} to each'
  )


def _link(method: str) -> str:
  return f'../configs/variants/{method}.py'


def _text(method: str) -> str:
  return (methods()[method].parent / f'{method}.py').read_text()


def _heading(method: str) -> tuple[str, str]:
  """A variant's first line, and the paper that it names first."""
  doc = ast.get_docstring(ast.parse(_text(method)))
  [paper, *_] = re.findall(r'arXiv\s+(\d{4}\.\d{5})', doc)
  return doc.splitlines()[0].rstrip('.'), paper


def _config_lines(method: str) -> int:
  return len(_text(method).splitlines())


def _function_lines(method: str) -> int:
  """Lines of code of the functions that a variant names and OPD does not."""
  config = overrides.load(f'{methods()[method]}:tiny')
  stage = config[config.stages[-1]]
  plain = (configs.stage(), *_PLAIN)
  named = {*functions(stage), *functions(config.context)}
  named -= {function for part in plain for function in functions(part)}
  return sum(_code_lines(function) for function in named)


def _code_lines(function) -> int:
  """Lines of a body, without docstring, comments and blanks."""
  source = textwrap.dedent(inspect.getsource(function))
  body = ast.parse(source).body[0].body
  skip = ast.get_docstring(ast.parse(source).body[0]) is not None
  if len(body) == skip:
    return 0
  lines = source.splitlines()[body[int(skip)].lineno - 1 :]
  return sum(bool(x.strip()) and x.strip()[0] != '#' for x in lines)
