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
  lines, stage = [], None
  for finding in findings:
    if finding.stage != stage:
      stage = finding.stage
      lines += [*([''] if lines else []), stage or 'all stages']
    lines += _lines(finding)
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


def _lines(finding: Finding) -> list[str]:
  number = '-' if math.isnan(finding.number) else f'{finding.number:.3g}'
  status = finding.status if finding.status == 'ok' else finding.status.upper()
  head = (
    f'  {status:<7} {finding.check:<18} {number:>8}  {finding.threshold:<14} '
  )
  lines = textwrap.wrap(
    finding.meaning,
    WIDTH,
    initial_indent=head,
    subsequent_indent=' ' * len(head),
  )
  if finding.status == 'ok':
    return lines
  about = {
    'why': finding.mechanism,
    'fix': finding.fix,
    'source': finding.source,
  }
  for word, text in about.items():
    lines += textwrap.wrap(
      text,
      WIDTH,
      initial_indent=f'{"":{_INDENT}}{word:<8}',
      subsequent_indent=' ' * (_INDENT + 8),
    )
  return lines
