"""`jopd doctor`: examines a config before training."""

import pathlib

from jopd.cli import output
from jopd.cli.train import refuse_other_work
from jopd.doctor.examine import examine
from jopd.doctor.findings import as_json, page, worst
from jopd.run.config import ConfigError
from jopd.run.overrides import load

EXIT_CODES = {'ok': 0, 'warn': 3, 'refuse': 2}


def main(arguments, overrides) -> int:
  """Prints what speaks against training a config; returns the exit code."""
  config = load(arguments.config, overrides)
  if arguments.workdir:
    workdir = pathlib.Path(arguments.workdir)
    if not (workdir / 'config.json').is_file():
      raise ConfigError(f'--workdir={workdir} holds no run: no config.json')
    refuse_other_work(workdir, config)
  output.prepare()
  findings = examine(
    config, workdir=arguments.workdir, prompts=arguments.prompts
  )
  print(as_json(findings) if arguments.json else page(findings))
  return EXIT_CODES[worst(findings)]
