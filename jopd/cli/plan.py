"""`jopd plan`: memory and time of a config, by the compiler."""

from jopd.cli import output
from jopd.cli.doctor import EXIT_CODES
from jopd.plan import table
from jopd.plan.plan import plan
from jopd.run.overrides import load


def main(arguments, overrides) -> int:
  """Prints what a config will need on some devices; returns the exit code."""
  config = load(arguments.config, overrides)
  output.prepare()
  result = plan(config, arguments.topology)
  print(table.as_json(result) if arguments.json else table.page(result))
  return EXIT_CODES[table.status(result)]
