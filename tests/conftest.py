"""Strict JAX for every test: 8 CPU devices, no silent rank promotion, no network."""

import os
import pathlib

os.environ['XLA_FLAGS'] = (
    os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
).strip()
os.environ['HF_HUB_OFFLINE'] = '1'
os.environ['JAX_PLATFORMS'] = 'cpu'

import jax  # noqa: E402  (the flags above must come first)
import pytest  # noqa: E402

jax.config.update('jax_numpy_rank_promotion', 'raise')

SHARED = pathlib.Path(__file__).resolve().parents[2] / 'shared'


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
