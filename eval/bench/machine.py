"""What the figures were measured on."""

import os
import pathlib
from importlib import metadata
from typing import Any

from eval.bench.context import Context

PACKAGES = ('jax', 'flax', 'optax', 'torch', 'transformers', 'peft', 'qwix')


def facts(context: Context) -> dict[str, Any]:
    """Processor, cores, load, threads and the versions of what was compared."""
    return {
        'cpu': _cpu(),
        'cores': len(os.sched_getaffinity(0)),
        'load': [round(x, 1) for x in os.getloadavg()],
        'nice': os.nice(0),
        'torch_threads': context.threads,
        'quick': context.quick,
        'versions': {name: _version(name) for name in PACKAGES},
    }


def _cpu() -> str:
    info = pathlib.Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else 'unknown'


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
