"""Peak memory of training, by two measures that mean different things.

program   what the compiler allots to one update: base, adapter, optimizer, batch, and everything
          that is born and dies in it. Exact, repeatable, the same on an idle or a busy machine.
process   the most that the process ever had resident when training ended: with Python, the
          libraries, what compiling took, and the pages the system had not yet taken back.
"""

import json
import pathlib
from typing import Any

import jax

from train import optimizer, rundir
from train.config import Config
from train.feed import Feed
from train.model import Built
from train.step import compile_programs

STATUS = pathlib.Path('/proc/self/status')


def program(config: Config, built: Built, feed: Feed) -> dict[str, int]:
    """Bytes of the update that `train.loop` runs: {'arguments', 'temporaries', 'total'}.

    It is compiled once more; with the compilation cache on, it is found there.
    """
    rate = optimizer.schedule(config.optim, feed.steps)
    tx = optimizer.make(config.optim, rate)
    params, consts = built.state
    programs = compile_programs(
        built.plan, built.forward, tx, rate, built.mesh, params, config.optim.seed
    )
    fed = feed.at(0)
    assert fed is not None
    update: Any = programs.update  # jitted
    lowered = update.lower(programs.shapes, consts, built.params, fed.arrays)
    stats = lowered.compile().memory_analysis()
    outputs = stats.output_size_in_bytes - stats.alias_size_in_bytes
    parts = {'arguments': stats.argument_size_in_bytes, 'temporaries': stats.temp_size_in_bytes}
    return {**parts, 'total': sum(parts.values()) + outputs}


def kept(file: pathlib.Path) -> int | None:
    """The larger of `process()` and what the file holds, which is then kept there.

    A second start of a run that was killed after its training would know of its evaluation only.
    """
    before = json.loads(file.read_text()) if file.exists() else None
    found = max((n for n in (before, process()) if n is not None), default=None)
    rundir.write_json(file, found)
    return found


def process() -> int | None:
    """Bytes: of the device where it counts them, else of this process; None where nobody does."""
    stats: dict[str, Any] | None = jax.devices()[0].memory_stats()
    if stats and 'peak_bytes_in_use' in stats:
        return int(stats['peak_bytes_in_use'])
    if not STATUS.exists():
        return None
    (line,) = [one for one in STATUS.read_text().splitlines() if one.startswith('VmHWM:')]
    return 1024 * int(line.split()[1])
