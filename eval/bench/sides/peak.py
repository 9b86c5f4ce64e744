"""Peak memory of a process that loads, compiles and makes two updates.

It compiles each time: a program from the compilation cache would leave out what compiling takes.
"""

import importlib
import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

from eval.bench.context import Context, adapter_folder

IMPORTS = {
    'ours': ('jax', 'jaxpeft', 'optax', 'safetensors.numpy', 'eval.bench.sides.ours'),
    'hf': ('torch', 'transformers', 'peft', 'safetensors.torch', 'eval.bench.sides.hf'),
}


def prepare(context: Context, spec: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Imports first; the rest happens in the one call of this process.

    Args:
      context: the shape.
      spec: whose ('ours' or 'hf'), and what a step takes.

    Raises:
      FileNotFoundError: without the adapter, which a row of steps or `start` writes.
    """
    os.environ['JAX_COMPILATION_CACHE_DIR'] = tempfile.mkdtemp(dir=context.work)
    for name in IMPORTS[spec['whose']]:
        importlib.import_module(name)
    side = importlib.import_module(f'eval.bench.sides.{spec["whose"]}')
    if not adapter_folder(context, spec['method'], spec['targets']).exists():
        _write_adapter(context, spec)
    imported = _status('VmRSS')

    def call() -> dict[str, Any]:
        step = side.prepare(context, spec)
        step()
        facts = step()
        return {**facts, 'value': _status('VmHWM') - imported, 'imported': imported}

    return call


def _write_adapter(context: Context, spec: dict[str, Any]) -> None:
    """Draws the adapter in a process of its own, so that none of it counts here."""
    from eval.bench.pool import Worker
    from eval.bench.rows import Subject

    log = pathlib.Path(context.work) / 'workers.log'
    worker = Worker('ours', context, log)
    try:
        worker.prepare(Subject('ours', {key: spec[key] for key in ('method', 'targets', 'labels')}))
    finally:
        worker.close()


def _status(field: str) -> float:
    """MB of /proc/self/status; unlike getrusage's, its VmHWM begins anew with each program."""
    lines = pathlib.Path('/proc/self/status').read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f'{field}:')]
    return int(line.split()[1]) / 1000
