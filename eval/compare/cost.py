"""What a run costs alone: memory by two measures that mean different things, and time.

program   bytes that the compiler allots to one update: base, adapter, optimizer, batch, and all
          that is born and dies in it. Exact: the same on an idle or a busy machine.
process   the most that the process ever had resident when training ended: with Python, the
          libraries, what compiling took, and the pages the system had not yet taken back.
seconds   an update's; of a run that trained with others in one program timed by itself
          afterwards, since a share of the time of all is no method's own.
"""

import json
import pathlib
import statistics
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from train import optimizer, rundir
from train.config import Config
from train.feed import Feed
from train.model import Built
from train.step import compile_programs

STATUS = pathlib.Path('/proc/self/status')


class Alone(NamedTuple):
    """The update of a run by itself.

    Attributes:
      program: {'arguments', 'temporaries', 'total'} in bytes.
      seconds: an update's, the median of some; None where none was timed.
      tokens: of those updates, a second.
    """

    program: dict[str, int]
    seconds: float | None
    tokens: float | None


def alone(config: Config, built: Built, feed: Feed, updates: int = 0) -> Alone:
    """The update that `train.loop` runs, compiled once more (the compilation cache has it).

    Args:
      config: of the run.
      built: the base with the run's plan and adapter.
      feed: its data.
      updates: how many are made, and timed, after one that is not; they change nothing.
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
    compiled = update.lower(programs.shapes, consts, built.params, fed.arrays).compile()
    stats = compiled.memory_analysis()
    outputs = stats.output_size_in_bytes - stats.alias_size_in_bytes
    parts = {'arguments': stats.argument_size_in_bytes, 'temporaries': stats.temp_size_in_bytes}
    parts |= {'total': sum(parts.values()) + outputs}
    if not updates:
        return Alone(parts, None, None)
    now, taken = programs.start(jax.tree.map(jnp.copy, params)), []
    for _ in range(1 + updates):
        began = time.perf_counter()
        now, metrics = compiled(now, consts, built.params, fed.arrays)
        jax.block_until_ready(metrics)
        taken.append(time.perf_counter() - began)
    seconds = statistics.median(taken[1:])
    return Alone(parts, seconds, fed.tokens / seconds)


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
