"""Strict JAX for every test: 8 CPU devices, no silent rank promotion, no network."""

import gc
import importlib.metadata
import os
import pathlib
import tempfile

# Tiny models cost 10 times more to compile than to run, nearly all of it in LLVM: without its
# optimizer the suite takes a third of the time. The numbers that the tests compare are the same.
FLAGS = [
    '--xla_force_host_platform_device_count=8',
    '--xla_backend_optimization_level=0',
    '--xla_llvm_disable_expensive_passes=true',
    # Eight devices wait for each other on few cores that other workers use too: 40 seconds, XLA's
    # own limit before it kills the process, is no sign of a deadlock there. pytest has a limit.
    '--xla_cpu_collective_call_terminate_timeout_seconds=500',
]
if tuple(map(int, importlib.metadata.version('jaxlib').split('.')[:2])) < (0, 11):
    FLAGS.append('--xla_cpu_use_fusion_emitters=false')  # an unknown flag aborts newer ones
os.environ['XLA_FLAGS'] = ' '.join([os.environ.get('XLA_FLAGS', ''), *FLAGS]).strip()
# XLA's pool has a thread a core, and a collective blocks one: with fewer threads than devices two
# collectives in flight can hold all of them and wait for each other.
os.environ['NPROC'] = '16'
os.environ['HF_HUB_OFFLINE'] = '1'
os.environ['JAX_PLATFORMS'] = 'cpu'

import jax  # noqa: E402  (the flags above must come first)
import pytest  # noqa: E402

jax.config.update('jax_numpy_rank_promotion', 'raise')

MAPS = pathlib.Path('/proc/self/maps')
MANY = 20_000  # mappings: Linux grants 65,530, each compiled program takes some, and XLA crashes

SHARED = pathlib.Path(__file__).resolve().parents[2] / 'shared'


@pytest.fixture(scope='session', autouse=True)
def programs_on_disk():
    """A program that any test of this worker compiled is read from disk in the others.

    Three in ten are, small ones of JAX's own above all. A folder a worker: JAX writes its files in
    place, and of two workers that share one, one could read half a file.
    """
    with tempfile.TemporaryDirectory(prefix='jaxpeft-programs-') as folder:
        jax.config.update('jax_compilation_cache_dir', folder)
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
        yield


@pytest.fixture(scope='module', autouse=True)
def few_mappings():
    """Lets go of compiled programs, after a module, before the process has too many of them."""
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b'\n') > MANY:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture
def shared_data():
    """`../shared/data`: real rows and models that are never committed; skips where they are not."""
    folder = SHARED / 'data'
    if not folder.exists():
        pytest.skip(f'needs the real data in {folder}, which this machine does not have')
    return folder
