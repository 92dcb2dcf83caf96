"""Checks of settings."""

import jax


def check_range(interval: str, **settings) -> None:
  """Refuses settings outside an interval, such as '(0, 1]' or '[0, inf)'.

  A traced value, such as that of a schedule, passes; a run checks its first and
  last values when it is built.

  Args:
    interval: its ends, in round brackets where they are excluded.
    settings: name -> number.

  Raises: ValueError for the first setting outside, or NaN.

  Example:
    >>> check_range('(0, 1]', fraction=1.0)
    >>> check_range('(0, 1]', fraction=0.0)
    Traceback (most recent call last):
    ValueError: fraction must be in (0, 1], got 0.0
  """
  low, high = map(float, interval[1:-1].split(','))
  for name, value in settings.items():
    if isinstance(value, jax.core.Tracer):
      continue
    above = low <= value if interval[0] == '[' else low < value
    below = value <= high if interval[-1] == ']' else value < high
    if not (above and below):
      raise ValueError(f'{name} must be in {interval}, got {value}')
