"""What a TPU program reads and writes in its large memory, from its text.

A compiled program says of each array whether it lies in the chip's large memory
(HBM) or, marked S(1), in the fast one (VMEM). `cost_analysis` counts both alike
and a loop once; here only bytes of the large one count.
"""

import math
import re
from typing import NamedTuple

_ARRAY = re.compile(r'\b(pred|[a-z]+\d+)\[([\d,]*)\](?:\{([^{}]*)\})?')
_LINE = re.compile(r'^\s+(ROOT )?(%[\w.-]+) = (.*?) ([a-z][a-z0-9-]*)\((.*)$')
_NAME = re.compile(r'%[\w.-]+')
# They move nothing, or what they start was counted there.
_FREE = {
  'after-all',
  'bitcast',
  'constant',
  'get-tuple-element',
  'iota',
  'opt-barrier',
  'parameter',
  'partition-id',
  'tuple',
}
_SLICES = {'dynamic-slice', 'gather', 'slice'}
_UPDATES = {'dynamic-update-slice': 1, 'scatter': 2}  # operand that is written


class Instruction(NamedTuple):
  """One line of a computation."""

  shape: str
  op: str
  operands: list[str]
  inside: str  # what stands between the parentheses
  attributes: str  # what comes after them
  root: bool

  @property
  def calls(self) -> str:
    return re.search(r'calls=(%[\w.-]+)', self.attributes)[1]


class Traffic(NamedTuple):
  """Bytes of HBM that an instruction reads and writes."""

  read: float
  written: float
  name: str
  op: str
  shape: str


def parse(text: str) -> dict[str, dict[str, Instruction]]:
  """The computations of a program, each with its instructions by name."""
  computations, current = {}, None
  for line in text.splitlines():
    if begins := re.match(r'(?:ENTRY )?(%[\w.-]+) .*\{$', line):
      current = computations[begins[1]] = {}
    elif current is not None and (match := _LINE.match(line)):
      root, name, shape, op, rest = match.groups()
      depth, end = 1, 0
      while depth:
        depth += {'(': 1, ')': -1}.get(rest[end], 0)
        end += 1
      inside = rest[: end - 1]
      current[name] = Instruction(
        shape, op, _NAME.findall(inside), inside, rest[end:], bool(root)
      )
  return computations


def loops(text: str) -> list[str]:
  """Names of the bodies of the program's loops, in the text's order."""
  return re.findall(r' while\(.*body=(%[\w.-]+)', text)


def arrays(shape: str) -> list[tuple[float, bool, list[int]]]:
  """(bytes, whether it lies in HBM, dimensions) of the arrays of a shape."""
  found = []
  for kind, dims, layout in _ARRAY.findall(shape):
    bits = 8 if kind == 'pred' else int(re.search(r'\d+', kind)[0])
    dims = [int(size) for size in dims.split(',') if size]
    found.append((bits / 8 * math.prod(dims), 'S(' not in layout, dims))
  return found


def _all(shape):
  return sum(size for size, *_ in arrays(shape))


def _hbm(shape):
  return sum(size for size, large, _ in arrays(shape) if large)


def traffic(computations, name: str) -> list[Traffic]:
  """What each instruction of a computation reads and writes in HBM.

  Of the branches of a condition the one with the least traffic counts; loops
  inside are not looked into. A fusion that only slices an operand reads the
  slices, one that updates it in place writes the update.
  """
  body, rows = computations[name], []
  for name, line in body.items():
    if line.op == 'conditional':
      branches = re.search(
        r'branch_computations=\{(.*?)\}|true_computation=.*?, false_comp\S+',
        line.attributes,
      )[0]
      rows += min(
        (traffic(computations, name) for name in _NAME.findall(branches)),
        key=lambda rows: sum(row.read + row.written for row in rows),
      )
    elif not _is_free(line):
      read, written = _moved(computations, body, line)
      rows.append(Traffic(read, written, name, line.op, line.shape))
  return rows


def _is_free(line):
  ends = line.op.endswith('-done') or line.op in ('while', 'call')
  return line.op in _FREE or ends or 'ConcatBitcast' in line.attributes


def _moved(computations, body, line):
  """(read, written) of one instruction."""
  operands = [body[name].shape for name in line.operands if name in body]
  if line.op == 'copy-start':  # (to, from, context)
    (size, to_hbm, _), (_, from_hbm, _) = arrays(line.shape)[:2]
    return size * from_hbm, size * to_hbm
  if line.op == 'slice-start':  # ((from), to, context)
    size, to_hbm, _ = arrays(line.shape)[-2]
    return size * bool(_hbm(operands[0])), size * to_hbm
  if line.op == 'fusion':
    read = sum(
      _touched(computations, line.calls, index, _hbm(shape))[0]
      for index, shape in enumerate(operands)
      if _hbm(shape)
    )
    return read, min(_changed(computations, line.calls), _hbm(line.shape))
  if line.op in _SLICES:
    return _all(line.shape) * bool(_hbm(operands[0])), _hbm(line.shape)
  if line.op in _UPDATES:
    update = operands[_UPDATES[line.op]]
    return _hbm(update), _all(update) * bool(_hbm(line.shape))
  return sum(map(_hbm, operands)), _hbm(line.shape)


def _touched(computations, name, index, size):
  """(bytes read of a parameter, whether it is the result) of a fusion."""
  body, read, result = computations[name], 0, False
  work = [
    name
    for name, line in body.items()
    if line.op == 'parameter' and line.inside == str(index)
  ]
  while work:
    alias = work.pop()
    result |= body[alias].root
    for user, line in body.items():
      if alias not in line.operands:
        continue
      if line.op in ('bitcast', 'tuple'):
        work.append(user)
      elif line.op in _SLICES and line.operands[0] == alias:
        read += _all(line.shape)
      elif line.op in _UPDATES and line.operands[0] == alias:
        continue
      elif line.op == 'fusion':
        inner = line.operands.index(alias)
        more, same = _touched(computations, line.calls, inner, size)
        read += more
        if same:
          work.append(user)
      else:
        return size, False
  return min(read, size), result


def _changed(computations, name):
  """Bytes that a fusion writes, were all its results in HBM."""
  body = computations[name]

  def of(name):
    line = body[name]
    if line.op in ('bitcast', 'tuple'):
      return sum(map(of, line.operands))
    if line.op == 'parameter':
      return 0  # handed through
    if line.op in _UPDATES:
      return _all(body[line.operands[_UPDATES[line.op]]].shape)
    if line.op == 'fusion':
      return _changed(computations, line.calls)
    return _all(line.shape)

  return of(next(name for name, line in body.items() if line.root))
