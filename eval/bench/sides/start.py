"""From the start of a process until its first update runs: imports, weights, compilation."""

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
        loaded = time.monotonic()
        begun = step()['begun']  # when it was compiled, or read from what an earlier start compiled
        spawned = float(os.environ[SPAWNED])
        return {
            'value': begun - spawned,
            'loaded': loaded - spawned,
            'first_update': time.monotonic() - spawned,
        }

    return call
