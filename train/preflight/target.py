"""The devices that a preflight compiles for: a TPU topology without TPUs, or this machine's."""

import importlib.util
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

GIB = 2**30
# libtpu asks the metadata server of a TPU VM who it is, which elsewhere only costs time and noise.
LIBTPU_ENV = {
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-8',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',  # nothing but its compiler is used
    'TPU_MIN_LOG_LEVEL': '3',
    'TPU_STDERR_LOG_LEVEL': '3',
}
DOCS = 'https://cloud.google.com/tpu/docs/'


class Chip(NamedTuple):
    """A kind of TPU.

    Attributes:
      hbm: GB of memory a chip, as the page `source` has it.
      usable: GiB of it that a program may have, as libtpu 0.0.42 says when one wants too much.
      options: for the topology: the two cores of a v4 chip work as one device.
    """

    hbm: int
    usable: float
    source: str
    options: dict[str, str]


CHIPS = {
    'v4': Chip(32, 30.75, DOCS + 'v4', {'chip_config_name': 'megacore'}),
    'v5e': Chip(16, 15.75, DOCS + 'v5e', {}),
    'v5p': Chip(95, 95.74, DOCS + 'v5p', {}),
    'v6e': Chip(32, 31.25, DOCS + 'v6e', {}),
}


class Target(NamedTuple):
    """Where the update is compiled for.

    Attributes:
      devices: the topology's, or this machine's.
      name: the topology, or 'local'.
      hbm: bytes of memory that a program may have on a device; None where nobody knows (a CPU).
      source: who says so.
    """

    devices: Sequence[Any]
    name: str
    hbm: float | None
    source: str

    @property
    def kind(self) -> str:
        """'TPU v5 lite', 'cpu', the name of a GPU."""
        return self.devices[0].device_kind

    @property
    def platform(self) -> str:
        """'tpu', 'cpu' or 'gpu'."""
        return self.devices[0].platform


def find(topology: str, hbm: float = 0.0) -> Target:
    """The devices of a topology such as 'v5e:2x4'; this machine's where it is empty.

    Args:
      topology: TPU generation and shape; '' for the devices that JAX sees.
      hbm: GiB a device has, where above 0; wins over what is known of the kind.

    Raises:
      ValueError: libtpu is not installed, or the topology is none that it knows.
    """
    target = _topology(topology) if topology else _local()
    return target._replace(hbm=hbm * GIB, source='--hbm') if hbm else target


def _topology(name: str) -> Target:
    generation, _, layout = name.partition(':')
    sizes = [int(n) for n in layout.split('x')] if re.fullmatch(r'\d+(x\d+)*', layout) else []
    if generation not in CHIPS or not sizes:
        raise ValueError(
            f'--topology takes {", ".join(CHIPS)} and a shape, such as v5e:2x4, got {name!r}'
        )
    if importlib.util.find_spec('libtpu') is None:
        raise ValueError(
            f'--topology {name} compiles with libtpu, which is not installed; it needs no TPU: '
            f"pip install 'jax[tpu]=={jax.__version__}' (x86 Linux; 0.5 GB)"
        )
    for key, value in LIBTPU_ENV.items():
        os.environ.setdefault(key, value)
    # The topology's devices are only compiled for. On a machine that has TPUs, leave them alone.
    jax.config.update('jax_platforms', 'cpu')
    # A program for devices that are not here cannot be read back from the cache.
    jax.config.update('jax_enable_compilation_cache', False)
    from jax.experimental import topologies
    from jax.experimental.compilation_cache import compilation_cache

    compilation_cache.reset_cache()  # it asks the setting once a process

    chip = CHIPS[generation]
    host = [*(min(2, n) for n in sizes[:2]), *[1] * (3 - len(sizes[:2]))]  # chips of one machine
    try:
        devices = topologies.get_topology_desc(
            platform='tpu', topology_name=name, chips_per_host_bounds=host, **chip.options
        ).devices
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f'libtpu knows no --topology {name}: {error}') from error
    source = f'of {chip.hbm} GB, {chip.source}'
    return Target(devices, name, chip.usable * GIB, source)


def _local() -> Target:
    devices = jax.devices()
    stats = devices[0].memory_stats() or {}
    limit = stats.get('bytes_limit')
    source = 'the device says' if limit else 'no limit known; give --hbm'
    return Target(devices, 'local', limit, source)
