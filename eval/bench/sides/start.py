"""From the start of a process to its first update: imports, weights, compilation."""

import os
import pathlib
import shutil
import time
from collections.abc import Callable
from typing import Any

from eval.bench.context import Context
from eval.bench.pool import SPAWNED


def prepare(context: Context, spec: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Points the compilation cache at a folder, emptied ('cold') or as the last start left it.

    Raises:
      FileNotFoundError: for 'warm' before any 'cold'.
    """
    folder = pathlib.Path(context.work) / 'start-cache'
    if spec['cache'] == 'cold':
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    elif not folder.exists():
        raise FileNotFoundError('no earlier start left its programs; --only start runs both rows')
    os.environ['JAX_COMPILATION_CACHE_DIR'] = str(folder)

    def call() -> dict[str, Any]:
        from eval.bench.sides import ours

        step = ours.prepare(context, spec)
        before = time.monotonic()
        step()  # compiles, or reads what an earlier start compiled, and makes an update
        first = time.monotonic()
        step()
        update = time.monotonic() - first
        spawned = float(os.environ[SPAWNED])
        return {
            'value': first - spawned - update,
            'first_update': first - spawned,
            'loaded': before - spawned,
            'update': update,
        }

    return call
