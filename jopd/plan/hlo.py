"""The cost of a compiled program, from its text, with all iterations of loops.

`cost_analysis` counts the body of a loop once, and bytes of all memories alike.
The text of a TPU program marks arrays in the fast memory (VMEM) with S(1); all
others are in the large one (HBM). Most instructions have an estimate of cycles.
"""

from collections import Counter
from collections.abc import Iterator
import math
import re
from typing import NamedTuple

_ARRAY = re.compile(r'\b(pred|[a-z]+\d+)\[([\d,]*)\](?:\{([^{}]*)\})?')
_LINE = re.compile(r'^\s+(ROOT )?(%[\w.-]+) = (.*?) ([a-z][a-z0-9-]*)\((.*)$')
_NAME = re.compile(r'%[\w.-]+')
# They move nothing, or are counted where they start.
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
  inside: str  # the parentheses
  attributes: str  # after the parentheses
  root: bool

  @property
  def calls(self) -> str:
    return self.attribute('calls')

  def attribute(self, name: str) -> str:
    """The computation that an attribute names."""
    return re.search(rf'{name}=(%[\w.-]+)', self.attributes)[1]


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


class Cost(NamedTuple):
  """The work of one device.

  Attributes:
    traffic: bytes read from and written to its large memory.
    cycles: estimate of the compiler; 0 without one.
    collectives: (kind, number of devices) -> bytes of their results.
  """

  traffic: float
  cycles: float
  collectives: dict[tuple[str, int], float]


def cost(text: str, *, turns: int = 1) -> Cost:
  """The cost of a program.

  Args:
    text: of `compiled.as_text()`.
    turns: iterations of loops whose number depends on the data.
  """
  computations = parse(text)
  traffic = cycles = 0.0
  collectives = Counter()
  entry = re.search(r'^ENTRY (%[\w.-]+)', text, re.MULTILINE)[1]
  for name, times in visits(computations, entry, turns):
    for row in moves(computations, name):
      traffic += times * (row.read + row.written)
    for line in computations[name].values():
      counted = re.search(r'"estimated_cycles":"(\d+)"', line.attributes)
      cycles += times * int(counted[1]) if counted else 0
      if found := collective(line):
        collectives[found[:2]] += times * found[2]
  return Cost(traffic, cycles, dict(collectives))


def collective(line: Instruction) -> tuple[str, int, float] | None:
  """(kind, number of devices, bytes of its result), if it is one."""
  if 'channel_id=' not in line.attributes or line.op.endswith('-done'):
    return None
  sizes = [size for size, *_ in arrays(line.shape)]
  # The shape of a start includes its operands.
  started = line.op.endswith('-start')
  size = max(sizes, default=0) if started else sum(sizes)
  return line.op.removesuffix('-start'), _group(line.attributes), size


def _group(attributes: str) -> int:
  """The number of devices of a collective."""
  axes = re.search(
    r'replica_groups=mesh\[(.*?)\](?:, device_ids=\S+)? \{(.*?)\}', attributes
  )
  if axes:
    sizes = dict(re.findall(r"('\w+')=(\d+)", axes[1]))
    return math.prod(int(sizes[axis]) for axis in axes[2].split(','))
  if groups := re.search(r'replica_groups=\[\d+,(\d+)\]', attributes):
    return int(groups[1])
  if groups := re.search(r'replica_groups=\{\{([\d,]+)\}', attributes):
    return len(groups[1].split(','))
  return 2  # of a permutation: a sender and a receiver


def visits(computations, entry: str, turns: int) -> Iterator[tuple[str, int]]:
  """Each computation that one runs, and how often.

  Of the branches of a condition the one that moves least counts, as the others
  are rare. Fusions and reductions belong to their caller.
  """
  work = [(entry, 1)]
  while work:
    name, times = work.pop()
    yield name, times
    for line in computations[name].values():
      if line.op == 'while':
        n = trips(computations[line.attribute('condition')])
        body = line.attribute('body')
        work.append((body, times * (turns if n is None else n)))
      elif line.op == 'call':
        work.append((line.attribute('to_apply'), times))
      elif line.op == 'conditional':
        work.append((_branch(computations, line), times))


def trips(condition: dict[str, Instruction]) -> int | None:
  """Iterations of a loop that counts from 0; None if the data decides."""
  lines = condition.values()
  numbers = [
    int(line.inside)
    for line in lines
    if line.op == 'constant' and line.inside.isdigit()
  ]
  compares = sum(line.op in ('compare', 'fusion') for line in lines)
  return numbers[0] if compares == len(numbers) == 1 else None


def arrays(shape: str) -> list[tuple[float, bool, list[int]]]:
  """(bytes, whether in HBM, dimensions) of the arrays of a shape."""
  result = []
  for kind, dims, layout in _ARRAY.findall(shape):
    bits = 8 if kind == 'pred' else int(re.search(r'\d+', kind)[0])
    dims = [int(size) for size in dims.split(',') if size]
    result.append((bits / 8 * math.prod(dims), 'S(' not in layout, dims))
  return result


def _all(shape):
  return sum(size for size, *_ in arrays(shape))


def _hbm(shape):
  return sum(size for size, large, _ in arrays(shape) if large)


def moves(computations, name: str) -> Iterator[Traffic]:
  """Bytes that each instruction of a computation reads and writes in HBM.

  Without loops, calls and branches. A fusion that only slices an
  operand reads the slices, one that updates it in place writes the update.
  """
  body = computations[name]
  for name, line in body.items():
    if not _is_free(line):
      read, written = _moved(computations, body, line)
      yield Traffic(read, written, name, line.op, line.shape)


def _branch(computations, line) -> str:
  """The branch of a condition that moves least."""
  branches = re.search(
    r'branch_computations=\{(.*?)\}|true_computation=.*?, false_comp\S+',
    line.attributes,
  )[0]
  moved = lambda name: sum(
    times * (row.read + row.written)
    for part, times in visits(computations, name, 1)
    for row in moves(computations, part)
  )
  return min(_NAME.findall(branches), key=moved)


def _is_free(line):
  ends = line.op.endswith('-done') or line.op in (
    'while',
    'call',
    'conditional',
  )
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
  """Bytes that a fusion writes if all its results are in HBM."""
  body = computations[name]

  def of(name):
    line = body[name]
    if line.op in ('bitcast', 'tuple'):
      return sum(map(of, line.operands))
    if line.op == 'parameter':
      return 0  # returned unchanged
    if line.op in _UPDATES:
      return _all(body[line.operands[_UPDATES[line.op]]].shape)
    if line.op == 'fusion':
      return _changed(computations, line.calls)
    return _all(line.shape)

  return of(next(name for name, line in body.items() if line.root))
