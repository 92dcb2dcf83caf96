"""What generates the responses of a stage, and which rows a term sees."""

from collections.abc import Callable, Mapping
from functools import partial
import math
import numbers
from typing import NamedTuple

import jax
import numpy as np

from jopd.losses import rows_where
from jopd.run.config import ConfigError, did_you_mean
from jopd.train import random_streams

# The source that is no model, and the one that learns.
DATASET, STUDENT = 'dataset', 'student'


class Sources(NamedTuple):
  """The response sources of a stage.

  Attributes:
    groups: the source of each response to a prompt -> the share of steps in
      which these generate.
    domains: of prompts, that terms select rows by; sorted.
  """

  groups: Mapping[tuple[str, ...], float]
  domains: tuple[str, ...] = ()

  @property
  def names(self) -> tuple[str, ...]:
    """All sources, the student first, a dataset last; `Row.source` indexes it.

    Example:
      >>> Sources({('dataset', 'hinted', 'student', 'teacher'): 1.0}).names
      ('student', 'hinted', 'teacher', 'dataset')
    """
    names = dict.fromkeys(name for group in self.groups for name in group)
    rank = {STUDENT: 0, DATASET: 2}
    return tuple(sorted(names, key=lambda name: rank.get(name, 1)))

  @property
  def group_size(self) -> int:
    """Responses to a prompt."""
    return len(next(iter(self.groups)))

  def count(self, name: str) -> int:
    """Most responses of a source to one prompt."""
    return max(group.count(name) for group in self.groups)

  def draw(self, key: jax.Array) -> tuple[str, ...]:
    """The source of each response of a group, from the key of a step."""
    groups = tuple(self.groups)
    if len(groups) == 1:
      return groups[0]
    edges = np.cumsum(list(self.groups.values()))[:-1]
    key = jax.random.fold_in(key, random_streams.SOURCE_DRAW)
    chance = jax.random.uniform(key)
    return groups[int(np.searchsorted(edges, chance, side='right'))]

  def rows(self, names: str | tuple[str, ...]) -> Callable | None:
    """Which rows a term with `rows` learns from, Row -> bool; None for all.

    With sources and domains: those of one of these sources, and of one of
    these domains.

    Raises:
      ConfigError: a name is neither.
    """
    names = _as_tuple(names)
    for name in names:
      if name not in (known := (*self.names, *self.domains)):
        raise ConfigError(f'rows names {name!r}{did_you_mean(name, known)}')
    index = lambda known: tuple(known.index(n) for n in names if n in known)
    where = dict(sources=index(self.names), domains=index(self.domains))
    return partial(rows_where, **where) if names else None


def make_sources(settings) -> Sources:
  """The sources of a stage.

  `response_source` is a name, for all responses; a tuple with a name for each
  response to a prompt; or a mapping from names to shares, one of which is drawn
  for all responses of a step. Names in `rows` of a term that are no sources are
  domains.

  Args:
    settings: of the stage.

  Raises:
    ConfigError: a name is no source, or no group can be made of them.
  """
  source, size = settings.response_source, settings.group_size
  if isinstance(source, str):
    groups = {(source,) * size: 1.0}
  elif hasattr(source, 'items'):
    groups = {(name,) * size: share for name, share in source.items()}
    _check_shares(dict(source))
  elif not isinstance(source, tuple | list):
    raise ConfigError(
      f'response_source must be a name, a tuple or shares, got {source!r}'
    )
  elif not source or size not in (1, len(source)):
    raise ConfigError(
      f'response_source names {len(source)} responses to a prompt, and'
      f' group_size is {size}: leave group_size at 1'
    )
  else:
    groups = {tuple(source): 1.0}
  known = (STUDENT, DATASET, *settings.teachers)
  for group in groups:
    for name in group:
      if name not in known:
        raise ConfigError(
          f'response_source is {name!r}{did_you_mean(name, known)}'
        )
    if group.count(DATASET) > 1:
      raise ConfigError(
        'a dataset has one response to a prompt, and response_source and'
        f' group_size need {group.count(DATASET)}: name it once, with'
        ' group_size=1'
      )
  sources = Sources(groups)
  selected = {
    name
    for term in settings.loss.values()
    if hasattr(term, 'get')
    for name in _as_tuple(term.get('rows', ()))
  }
  return sources._replace(domains=tuple(sorted(selected - {*sources.names})))


def _check_shares(shares: Mapping[str, float]) -> None:
  for name, share in shares.items():
    if not isinstance(share, numbers.Real) or not share > 0:
      raise ConfigError(
        f'response_source.{name} is a share and must be above 0, got {share!r}'
      )
  if not math.isclose(total := math.fsum(shares.values()), 1, abs_tol=1e-6):
    raise ConfigError(f'shares of response_source must sum to 1, got {total:g}')


def _as_tuple(names) -> tuple[str, ...]:
  return (names,) if isinstance(names, str) else tuple(names)
