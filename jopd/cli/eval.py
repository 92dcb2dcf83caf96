"""`jopd eval`: the accuracies of a Hugging Face folder."""

from functools import partial
import json
import logging
import sys

from jopd.cli import output
from jopd.run.build import build_evaluation
from jopd.run.overrides import load

_log = logging.getLogger(__name__)


def main(arguments, overrides) -> None:
  """Prints the accuracies of a Hugging Face folder as JSON."""
  config = load(arguments.config, overrides)
  output.check_new_file(arguments.output)
  output.prepare()
  with output.new_file(arguments.output) as out:
    record = None if out is sys.stdout else partial(output.write_row, out)
    evaluate = build_evaluation(config, arguments.model, record=record)
    results = evaluate()
  if set(results) == {'eval_data'}:
    results = results['eval_data']
  else:
    _log.info(table(results))
    results = {'tasks': results}
  print(json.dumps({'model': arguments.model, **results}, indent=2))


def table(results: dict[str, dict]) -> str:
  """The accuracies of several tasks as text, a row per task.

  Args:
    results: task -> the numbers of `evaluate.make_evaluate`.

  Returns:
    Percentages with their intervals, and their mean over tasks without one.
  """
  first = next(iter(results.values()))
  columns = [name for name in first if f'{name}_low' in first]
  width = max(len('mean'), *map(len, results))
  rows = [['', *columns]]
  for task, numbers in results.items():
    cells = []
    for column in columns:
      ends = (100 * numbers[column + end] for end in ('', '_low', '_high'))
      cells.append('{:.1f} [{:.1f}, {:.1f}]'.format(*ends))
    rows.append([task, *cells])
  means = [sum(r[c] for r in results.values()) / len(results) for c in columns]
  rows.append(['mean', *(f'{100 * mean:.1f}' for mean in means)])
  return '\n'.join(
    ' '.join([f'{name:<{width}}', *(f'{cell:>20}' for cell in cells)])
    for name, *cells in rows
  )
