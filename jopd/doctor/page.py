"""The findings as one page of plain text, or as JSON."""

from collections.abc import Sequence
import json
import math
import textwrap

from jopd.doctor.findings import Finding, worst

WIDTH = 100
_INDENT = 10
_END = {
  'ok': 'healthy: nothing found',
  'warn': 'can work, with warnings: {warn}',
  'refuse': 'will not work: {refuse} refused, warnings: {warn}',
}


def page(findings: Sequence[Finding]) -> str:
  """One line for each finding, and what to do about those that are not 'ok'.

  Args:
    findings: in the order in which they are shown; those of a stage together.

  Returns:
    Text of at most 100 columns, without colours.
  """
  lines, stage, told = [], None, {}
  for finding in findings:
    if finding.stage != stage:
      stage = finding.stage
      lines += [*([''] if lines else []), stage or 'all models']
    lines += _line(finding)
    if finding.status != 'ok':
      # One cause may show in many numbers, and is explained once.
      cause = finding.mechanism, finding.fix
      lines += _reasons(finding, told.get(cause))
      told.setdefault(cause, finding.check)
  statuses = [f.status for f in findings]
  end = _END[worst(findings)].format(
    **{status: statuses.count(status) for status in _END}
  )
  return '\n'.join([*lines, '', end])


def as_json(findings: Sequence[Finding]) -> str:
  """The worst status and all findings as JSON; null for what is no number."""
  rows = [finding._asdict() for finding in findings]
  for row in rows:
    if not math.isfinite(row['number']):
      row['number'] = None
  document = {'status': worst(findings), 'findings': rows}
  return json.dumps(document, indent=2, allow_nan=False)


def _line(finding: Finding) -> list[str]:
  number = '-' if math.isnan(finding.number) else f'{finding.number:.3g}'
  status = finding.status if finding.status == 'ok' else finding.status.upper()
  limit = finding.threshold.replace('at most', '<=').replace('at least', '>=')
  head = f'  {status:<6}  {finding.check:<18} {number:>8} {limit:<8}  '
  return textwrap.wrap(
    finding.meaning,
    WIDTH,
    initial_indent=head,
    subsequent_indent=' ' * len(head),
  )


def _reasons(finding: Finding, same_as: str | None) -> list[str]:
  """Why, fix and source, each on lines of its own."""
  told = {'why': finding.mechanism, 'fix': finding.fix}
  if same_as:
    told = {'why': f'as for {same_as}'}
  lines = []
  for word, text in (told | {'source': finding.source}).items():
    head = f'{"":{_INDENT}}{word:<8}'
    lines += textwrap.wrap(
      text,
      WIDTH,
      initial_indent=head,
      subsequent_indent=' ' * len(head),
    )
  return lines
