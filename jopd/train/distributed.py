"""Several processes as one run: how they meet, and what they must agree on."""

from collections.abc import Callable, Mapping
import json
import os
import sys
import time
from typing import Any

import jax
import numpy as np

from jopd import sharding
from jopd.train.errors import WrongInputError

# Seconds after which a process that says nothing counts as dead, and the others
# are ended. A step may take longer: heartbeats have a thread of their own.
_HEARTBEAT = 60
# Seconds in which the others must end too when one has come to its end.
_SHUTDOWN = 60
# Seconds in which the others can say what went wrong with them.
_LAST_WORDS = 3


def join(
  coordinator: str | None = None,
  processes: int | None = None,
  process: int | None = None,
) -> None:
  """Meets the other processes of the run, before JAX is used for anything else.

  Args:
    coordinator: 'host:port' of process 0; None for all three lets JAX ask the
      cluster (Cloud TPU, Slurm, Open MPI, Kubernetes).
    processes: how many there are.
    process: which one this is, from 0.

  Raises: WrongInputError when no cluster is found, or the three do not fit
    together.
  """
  given = (coordinator, processes, process)
  if None in given and any(value is not None for value in given):
    raise WrongInputError(
      'give all of --coordinator=HOST:PORT, --processes and --process, or none'
    )
  if coordinator and not 0 <= process < processes:
    raise WrongInputError(f'there is no process {process} among {processes}')
  try:
    jax.distributed.initialize(
      *given,
      heartbeat_timeout_seconds=_HEARTBEAT,
      shutdown_timeout_seconds=_SHUTDOWN,
    )
  except ValueError as error:
    raise WrongInputError(
      'no cluster was found that says who the processes are (Cloud TPU, Slurm,'
      ' Open MPI, Kubernetes); give --coordinator=HOST:PORT, --processes and'
      f' --process ({error})'
    ) from error


def texts(text: str) -> list[str]:
  """The text of every process, by its number."""
  own = np.frombuffer(text.encode(), np.uint8)
  padded = np.zeros(sharding.largest(np.array([own.size])), np.uint8)
  padded[: own.size] = own
  all_rows = sharding.from_hosts(padded)
  # No text holds a zero byte.
  return [row.tobytes().rstrip(b'\0').decode() for row in all_rows]


def check_same(what: str, own: Mapping[str, object]) -> None:
  """Refuses processes that were told, or have read, different things.

  Args:
    what: comes before a key, in the message.
    own: of this process, plain JSON.

  Raises: WrongInputError with the first process and key that differ.
  """
  first, *others = map(json.loads, texts(json.dumps(own)))
  for process, other in enumerate(others, 1):
    for key in sorted({*first, *other}):
      if first.get(key) != other.get(key):
        raise WrongInputError(
          f'process {process} has another {what}{key} than process 0: start'
          ' all of them with the same file, the same overrides and the same'
          ' data'
        )


def broadcast_from_host0(find: Callable[[], Any]) -> Any:
  """What the first process finds, on every one; the others do not look.

  Files may change under several who look at them.

  Args:
    find: returns what JSON can hold; keys come back as text.
  """
  own = json.dumps(find()) if jax.process_index() == 0 else ''
  return json.loads(texts(own)[0])


def give_up(code: int) -> None:
  """Ends this process at once after an error, if it is one of several.

  An ordinary exit would wait for the others, of which one may be dead. They
  notice that this one is gone and end too: at their next exchange, or when they
  miss its heartbeat.
  """
  if jax.distributed.is_initialized():
    print(
      f'jopd: this was process {jax.process_index()} of {jax.process_count()};'
      ' if another one ended first, its log says why. Start all of them again'
      ' to go on from the last checkpoint',
      file=sys.stderr,
      flush=True,
    )
    if jax.process_index() == 0:
      time.sleep(_LAST_WORDS)  # the others cannot outlive their coordinator
    os._exit(code)
