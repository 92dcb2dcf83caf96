"""Compiled programs that say when they compile, and how long it took."""

import contextlib
import hashlib
import os
import pathlib
import platform
import time

import jax
import jaxlib


class Program:
  """A jitted function, compiled ahead of its first call for each shape.

  A run compiles each phase once; that every further compilation is announced
  makes a shape that drifts visible.

  Args:
    name: of the phase, for the message.
    function: pure, of arrays and pytrees of arrays.
    say: takes a line of text.
    clock: of `train.metrics`, charged with 'compile'.
    jit_options: of `jax.jit`, for instance donate_argnums.
  """

  def __init__(
    self,
    name,
    function,
    *,
    say=lambda line: None,
    clock=lambda phase: contextlib.nullcontext(),
    **jit_options,
  ):
    self.name = name
    self.compilations = 0
    self._say, self._clock = say, clock
    self._jitted = jax.jit(function, **jit_options)
    self._compiled = {}

  def trace(self, *args):
    """What `jax.jit` traces for such arguments, which may be shapes."""
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
      self._say(f'compiled {self.name} in {seconds:.1f} s')
    return self._compiled[signature](*args)


def bucket(longest: int, most: int, sizes: int) -> int:
  """The size that is compiled for: most, half of it, a quarter, and so on.

  Args:
    longest: what it must hold.
    most: the largest size.
    sizes: how many there are.

  Returns:
    The smallest of the `sizes` that is at least `longest`.

  Example:
    >>> [bucket(n, 100, 3) for n in (7, 25, 26, 51, 100)]
    [25, 25, 50, 100, 100]
  """
  halves = (-(-most // 2**n) for n in range(sizes))
  return min(size for size in halves if size >= longest)


def cache_compilations() -> None:
  """Keeps compiled programs on disk, so that the next run starts sooner.

  In JAX_COMPILATION_CACHE_DIR if that is set, else below ~/.cache/jopd: in a
  folder per jaxlib and processor, as a program compiled for another may crash.
  JAX_ENABLE_COMPILATION_CACHE=false turns it off.
  """
  if jax.config.jax_compilation_cache_dir is None:
    root = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    machine = hashlib.sha256(_processor().encode()).hexdigest()[:8]
    folder = pathlib.Path(root) / 'jopd' / f'{jaxlib.__version__}-{machine}'
    jax.config.update('jax_compilation_cache_dir', str(folder))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
  jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)


def _processor() -> str:
  """What the processor can do, as far as the system tells."""
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:
    return platform.processor()
  kinds = ('model name', 'flags', 'Features')
  return '\n'.join(sorted({line for line in lines if line.startswith(kinds)}))
