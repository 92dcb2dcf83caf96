"""SIGTERM and Ctrl-C: the first is noted, the second ends the process at once.

Python runs handlers between two of its own instructions, and a step may spend
minutes inside one compiled call. So signals are read from a pipe, by a thread:
it can say at once that it was heard, and the second signal waits for nothing.
"""

from collections.abc import Callable, Iterator
import contextlib
import os
import signal
import threading

HEARD = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def noted(say: Callable[[str], None]) -> Iterator[Callable[[], int]]:
  """Inside, the first SIGTERM or SIGINT is told, and ends nothing.

  Handlers are those of before afterwards. Only the main thread may do this.

  Args:
    say: takes a line of text.

  Yields:
    A function that returns the number of the signal that came first, 0 until
    one does.
  """
  came: list[int] = []
  ear, mouth = os.pipe()
  os.set_blocking(mouth, False)

  def decode_logits():
    while number := os.read(ear, 1)[0]:
      if number not in HEARD:
        continue
      if came:
        os._exit(128 + number)
      came.append(number)
      say(
        f'{signal.Signals(number).name}: finishing this step, then saving; once'
        ' more ends at once'
      )

  before = {n: signal.signal(n, lambda *_: None) for n in HEARD}
  fd_before = signal.set_wakeup_fd(mouth, warn_on_full_buffer=False)
  thread = threading.Thread(target=decode_logits, name='signals', daemon=True)
  thread.start()
  try:
    yield lambda: came[0] if came else 0
  finally:
    signal.set_wakeup_fd(fd_before)
    for number, handler in before.items():
      # None stands for one that was not set from Python.
      signal.signal(number, signal.SIG_DFL if handler is None else handler)
    os.write(mouth, b'\0')  # no signal has that number
    thread.join()
    os.close(ear)
    os.close(mouth)
