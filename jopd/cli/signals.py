"""SIGTERM and Ctrl-C: the first asks the run to stop, the second ends it.

Python runs handlers between two of its own instructions, and a step may spend
minutes inside one compiled call. So a thread reads signals from a pipe: it logs
the first at once, and the second need not wait for anything.
"""

from collections.abc import Callable, Iterator
import contextlib
import logging
import os
import signal
import threading

SIGNALS = (signal.SIGTERM, signal.SIGINT)

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def stop_requested() -> Iterator[Callable[[], int]]:
  """Inside, the first SIGTERM or SIGINT is logged, and ends nothing.

  Handlers are restored afterwards. Only the main thread may enter it.

  Yields:
    A function that returns the number of the first signal, 0 until one comes.
  """
  received: list[int] = []
  read_end, write_end = os.pipe()
  os.set_blocking(write_end, False)

  def listen():
    while number := os.read(read_end, 1)[0]:
      if number not in SIGNALS:
        continue
      if received:
        os._exit(128 + number)
      received.append(number)
      _log.info(
        '%s: finishing this step, then saving; once more ends at once',
        signal.Signals(number).name,
      )

  handlers = {n: signal.signal(n, lambda *_: None) for n in SIGNALS}
  fd_before = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
  thread = threading.Thread(target=listen, name='signals', daemon=True)
  thread.start()
  try:
    yield lambda: received[0] if received else 0
  finally:
    signal.set_wakeup_fd(fd_before)
    for number, handler in handlers.items():
      # None stands for one that was not set from Python.
      signal.signal(number, signal.SIG_DFL if handler is None else handler)
    os.write(write_end, b'\0')  # no signal has that number
    thread.join()
    os.close(read_end)
    os.close(write_end)
