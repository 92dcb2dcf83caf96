"""Test settings: eight fake CPU devices, strict shapes, no network."""

import atexit
import logging
import os
import shutil
import tempfile

# Before jax is imported anywhere: they are read once. Nearly all the time of a
# test goes into compiling small programs; LLVM without optimization needs two
# thirds of it.
os.environ['XLA_FLAGS'] = ' '.join(
  [
    os.environ.get('XLA_FLAGS', ''),
    '--xla_force_host_platform_device_count=8',
    '--xla_backend_optimization_level=0',
  ]
)
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['HF_HUB_OFFLINE'] = '1'
os.environ['TOKENIZERS_PARALLELISM'] = 'false'
os.environ['MPLBACKEND'] = 'agg'

# Tests compile the same small programs again and again; once is enough. The
# workers of `pytest -n` inherit the folder of the process that starts them. To
# keep it between two runs of the suite, name it in JOPD_TEST_CACHE.
if 'PYTEST_XDIST_WORKER' not in os.environ:
  cache = os.environ.get('JOPD_TEST_CACHE')
  if not cache:
    cache = tempfile.mkdtemp(prefix='jopd-tests-')
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
  os.environ['JAX_COMPILATION_CACHE_DIR'] = cache

import hypothesis
import jax
from jax._src import lru_cache
import pytest

jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)


def _put(cache, key, program):
  """Writes beside the file and renames: another worker may be reading."""
  path = cache.path / f'{key}{lru_cache._CACHE_SUFFIX}'
  if not path.exists():
    unfinished = path.with_name(f'{path.name}.{os.getpid()}')
    unfinished.write_bytes(program)
    os.replace(unfinished, path)


lru_cache.LRUCache.put = _put

# The same examples each time, few of them. For more, and others each time:
# --hypothesis-profile=long.
_SETTINGS = dict(
  deadline=None,
  database=None,
  suppress_health_check=list(hypothesis.HealthCheck),
)
hypothesis.settings.register_profile(
  'suite', max_examples=40, derandomize=True, **_SETTINGS
)
hypothesis.settings.register_profile('long', max_examples=3000, **_SETTINGS)
hypothesis.settings.load_profile('suite')


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
  """Contiguous halves, and whoever is done early takes from the other's end.

  So the tests of a file mostly share a worker, its fixtures and its compiled
  programs. `loadscope` would keep every file whole, and one core idle while
  the other finishes the dearest file.
  """
  if config.option.dist == 'load':
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


@pytest.fixture
def key():
  return jax.random.key(0)


@pytest.fixture(autouse=True)
def _restore_logging():
  """The console command takes the logger over; each test gets it back."""
  logging.getLogger('jopd').handlers = []
  logging.getLogger('jopd').propagate = True
