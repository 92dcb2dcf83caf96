"""`jopd report`: draws the metrics of runs."""

from jopd.report.report import report


def main(arguments, overrides) -> None:
  """Draws runs and prints where the page is."""
  del overrides
  print(report(arguments.runs, out=arguments.out))
