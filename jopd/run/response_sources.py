"""Who writes the responses that a stage learns from, and who learns from whom.

From settings to what the loop and the loss need of them.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
import math
import numbers
from typing import NamedTuple

import jax
import numpy as np

from jopd.losses import rows_where
from jopd.run.config import did_you_mean
from jopd.train import random_streams

# The one source that is no model, and the one that learns.
DATASET, STUDENT = 'dataset', 'student'


def members(settings) -> dict[tuple[str, ...], float]:
  """Who writes each response of a group -> the share of steps where it is so.

  `source` is one of three: a name, for all responses of every group; a tuple
  with a name for each; or a mapping from names to shares, one of which is drawn
  for all responses of a step.

  Args:
    settings: of a stage: source, group_size, teachers.

  Raises:
    ValueError: a name is no source, or the group cannot be made up so.

  Example:
    >>> from jopd import config
    >>> shares = dict(student=0.75, dataset=0.25)
    >>> members(config.stage(source=shares))
    {('student',): 0.75, ('dataset',): 0.25}
  """
  source, size = settings.response_source, settings.group_size
  if isinstance(source, str):
    found = {(source,) * size: 1.0}
  elif hasattr(source, 'items'):
    found = {(name,) * size: share for name, share in source.items()}
    _check_shares(dict(source))
  else:
    found = {tuple(source): 1.0}
    if size not in (1, len(source)) or not source:
      raise ValueError(
        f'source names {len(source)} responses to a prompt, and group_size is'
        f' {size}: leave group_size alone'
      )
  known = (STUDENT, DATASET, *settings.teachers)
  for group in found:
    for name in group:
      if name not in known:
        raise ValueError(f'source is {name!r}{did_you_mean(name, known)}')
    if group.count(DATASET) > 1:
      raise ValueError(
        'a dataset has one response to a prompt, and source and group_size ask'
        f' for {group.count(DATASET)}: name it once, with group_size 1'
      )
  return found


def _check_shares(source: dict) -> None:
  for name, share in source.items():
    if not isinstance(share, numbers.Real) or not share > 0:
      raise ValueError(
        f'source: the share of {name!r} must be above 0, got {share!r}'
      )
  total = math.fsum(source.values())
  if not math.isclose(total, 1, abs_tol=1e-6):
    raise ValueError(f'source: shares must sum to 1, got {total:g}')


class Rows(NamedTuple):
  """Which rows a stage has, for what asks for some of them.

  Attributes:
    groups: who may write the responses to one prompt.
    domains: of prompts, that terms name; a place in it is that of a row.
  """

  groups: tuple[tuple[str, ...], ...]
  domains: tuple[str, ...] = ()

  @property
  def sources(self) -> tuple[str, ...]:
    """Everybody who writes, a place in it being the origin of a row.

    The student first, a dataset last.

    Example:
      >>> Rows([('dataset', 'hinted', 'student', 'teacher')]).sources
      ('student', 'hinted', 'teacher', 'dataset')
    """
    names = dict.fromkeys(name for group in self.groups for name in group)
    rank = {STUDENT: 0, DATASET: 2}
    return tuple(sorted(names, key=lambda name: rank.get(name, 1)))

  @property
  def source_indices(self) -> list[list[int]]:
    """The groups, with places instead of names."""
    place = self.sources.index
    return [[place(name) for name in group] for group in self.groups]

  @property
  def group_size(self) -> int:
    """Responses to a prompt."""
    return len(self.groups[0])

  def most(self, name: str) -> int:
    """Responses of a source to a prompt, where it writes most."""
    return max(group.count(name) for group in self.groups)


ALONE = Rows(((STUDENT,),))


def draw(
  groups: Mapping[tuple[str, ...], float],
) -> Callable[[jax.Array], tuple[str, ...]]:
  """From the key of a step to who writes each response of its groups.

  Args:
    groups: of `members`.
  """
  choices, last = tuple(groups), len(groups) - 1
  if not last:
    return lambda key: choices[0]
  edges = np.cumsum(list(groups.values()))[:-1]

  def choose(key):
    key = jax.random.fold_in(key, random_streams.SOURCE_DRAW)
    chance = jax.random.uniform(key)
    return choices[int(np.searchsorted(edges, chance, side='right'))]

  return choose


def make_rows(groups: Iterable[tuple[str, ...]], terms: Mapping) -> Rows:
  """The rows of a stage.

  Args:
    groups: of `members`.
    terms: name -> settings of a term. Names in their `rows` that are no sources
      are domains, which the data must have.
  """
  alone = Rows(tuple(groups))
  asked = {name for spec in terms.values() for name in _names(spec)}
  return alone._replace(domains=tuple(sorted(asked - {*alone.sources})))


def rows_on(spec: Mapping, rows: Rows) -> Callable | None:
  """Which rows a term learns from, Row -> bool; None is all.

  With sources and domains in its `rows`: those of one of these sources, and of
  one of these domains.

  Args:
    spec: of the term.
    rows: all that there are.

  Raises:
    ValueError: its `rows` has a name that is neither.
  """
  names, known = _names(spec), (*rows.sources, *rows.domains)
  for name in names:
    if name not in known:
      raise ValueError(f'rows names {name!r}{did_you_mean(name, known)}')
  places = lambda some: tuple(some.index(n) for n in names if n in some)
  of = dict(sources=places(rows.sources), domains=places(rows.domains))
  return partial(rows_where, **of) if names else None


def _names(spec: Mapping) -> tuple[str, ...]:
  """The names in `rows` of a term, which may be one."""
  on = spec.get('rows', ())
  return (on,) if isinstance(on, str) else tuple(on)
