"""Test settings: eight fake CPU devices, strict shapes, no network."""

import atexit
import logging
import os
import shutil
import tempfile

# Before jax is imported anywhere: they are read once.
os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
)
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['HF_HUB_OFFLINE'] = '1'
os.environ['TOKENIZERS_PARALLELISM'] = 'false'
os.environ['MPLBACKEND'] = 'agg'

# Tests compile the same small programs again and again; once is enough.
_CACHE = tempfile.mkdtemp(prefix='jopd-tests-')
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
os.environ['JAX_COMPILATION_CACHE_DIR'] = _CACHE

import hypothesis
import jax
import pytest

jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)

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


@pytest.fixture
def key():
  return jax.random.key(0)


@pytest.fixture(autouse=True)
def _logs_reach_pytest():
  """The console command takes the logger over; each test gets it back."""
  logging.getLogger('jopd').handlers = []
  logging.getLogger('jopd').propagate = True
