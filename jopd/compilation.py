"""Compiled programs that log when they compile, and the compilation cache."""

from collections.abc import Callable
import contextlib
import hashlib
import logging
import os
import pathlib
import platform
import time

import jax
import jaxlib

_log = logging.getLogger(__name__)


class Program:
  """A jitted function, compiled ahead of its first call for each shape.

  Every compilation is logged: one that repeats reveals a shape that varies.

  Args:
    name: of the phase, for the message.
    function: pure, of arrays and pytrees of arrays.
    clock: (phase) -> context manager, entered for 'compile'.
    jit_options: of `jax.jit`, for instance donate_argnums.
  """

  def __init__(
    self,
    name: str,
    function: Callable,
    *,
    clock: Callable = lambda phase: contextlib.nullcontext(),
    **jit_options,
  ):
    self.name = name
    self.compilations = 0
    self._clock = clock
    self._jitted = jax.jit(function, **jit_options)
    self._compiled = {}

  def trace(self, *args):
    """`jax.jit(function).trace` of arguments, which may be shapes."""
    return self._jitted.trace(*args)

  def __call__(self, *args):
    leaves, tree = jax.tree.flatten(args)
    signature = tree, tuple((x.shape, x.dtype, x.sharding) for x in leaves)
    if signature not in self._compiled:
      start = time.perf_counter()
      with self._clock('compile'):
        self._compiled[signature] = self._jitted.lower(*args).compile()
      self.compilations += 1
      seconds = time.perf_counter() - start
      _log.info('compiled %s in %.1f s', self.name, seconds)
    return self._compiled[signature](*args)


def bucket(longest: int, most: int, sizes: int) -> int:
  """The smallest of most, most / 2, most / 4, ... that is at least `longest`.

  Args:
    longest: length that the bucket must hold.
    most: the largest bucket.
    sizes: number of buckets.

  Example:
    >>> [bucket(n, 100, 3) for n in (7, 25, 26, 51, 100)]
    [25, 25, 50, 100, 100]
  """
  halves = (-(-most // 2**n) for n in range(sizes))
  return min(size for size in halves if size >= longest)


def cache_compilations() -> None:
  """Keeps compiled programs on disk, so that the next run starts sooner.

  They are in JAX_COMPILATION_CACHE_DIR if that is set, else in ~/.cache/jopd in
  a folder per jaxlib and processor, since a program compiled for another one
  may crash. JAX_ENABLE_COMPILATION_CACHE=false turns the cache off.
  """
  if jax.config.jax_compilation_cache_dir is None:
    root = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    machine = hashlib.sha256(_processor().encode()).hexdigest()[:8]
    folder = pathlib.Path(root) / 'jopd' / f'{jaxlib.__version__}-{machine}'
    jax.config.update('jax_compilation_cache_dir', str(folder))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
  jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)


def _processor() -> str:
  """Model and features of the processor, where the system lists them."""
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:
    return platform.processor()
  kinds = ('model name', 'flags', 'Features')
  return '\n'.join(sorted({line for line in lines if line.startswith(kinds)}))
