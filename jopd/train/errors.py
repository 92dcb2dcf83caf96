"""Errors that a command reports in one line, each with its exit code.

Imports nothing, so that a wrong flag need not wait for JAX.
"""

import errno
import signal

FAILED = 1
WRONG_INPUT = 2
DISK_FULL = 4
BROKEN_DOWN = 5


def exit_code(error: BaseException) -> int:
  """The exit code of an error; `FAILED` if it is none of this module."""
  if is_disk_full(error):
    return DISK_FULL
  return getattr(error, 'exit_code', FAILED)


class WrongInputError(ValueError):
  """A flag is wrong, or a file of a run is damaged or of another run."""

  exit_code = WRONG_INPUT


class Stopped(Exception):
  """A signal asked the run to stop; the step was finished and saved.

  Args:
    number: of the signal; the exit code is what shells make of it.
    text: where the run stands.
  """

  def __init__(self, number: int, text: str):
    super().__init__(f'{signal.Signals(number).name}: {text}')
    self.exit_code = 128 + number


class NonFiniteLossError(FloatingPointError):
  """Update after update could not be made."""

  exit_code = BROKEN_DOWN


def is_disk_full(error: BaseException | None) -> bool:
  """Whether an error comes of a disk, or a quota, that is used up.

  Libraries wrap the system's error, or leave only its text.
  """
  while error is not None:
    if getattr(error, 'errno', None) in (errno.ENOSPC, errno.EDQUOT):
      return True
    if 'No space left' in str(error) or 'quota exceeded' in str(error):
      return True
    error = error.__cause__ or error.__context__
  return False
