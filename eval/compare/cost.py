"""What an update of each method costs: bytes by the compiler's account, time turn by turn.

program   bytes that the compiler allots to the update of the largest batch: base, adapter,
          optimizer, batch, and all that is born and dies in it. The same on an idle or a busy
          machine.
process   the most that the process ever had resident when training ended: with Python, the
          libraries, what compiling took, and the pages the system had not yet taken back.
seconds   an update's. All methods are held in one process and take turns (A B C A B C ...) on the
          same rows, so that what slows the machine down slows all of them.
"""

import json
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from eval.compare.jobs import Job
from train import feed, model, optimizer, results, rundir
from train.config import Config
from train.feed import Feed
from train.model import Built
from train.step import compile_programs

Costs = dict[str, dict[str, Any]]  # label -> what `measure` found of it

STATUS = pathlib.Path('/proc/self/status')
FREE = ('lr', 'seed', 'forget')  # of a run's identity; its cost does not depend on them


class Update:
    """A run's update, compiled for each of its batch sizes, and made again and again.

    Args:
      config: of the run.
      built: the base with the run's plan and a fresh adapter.
      fed: its data.
    """

    def __init__(self, config: Config, built: Built, fed: Feed):
        rate = optimizer.schedule(config.optim, fed.steps)
        tx = optimizer.make(config.optim, rate)
        params, self._consts = built.state
        self._programs = compile_programs(
            built.plan, built.forward, tx, rate, built.mesh, params, config.optim.seed
        )
        self._base, self._feed = built.params, fed
        self._now = self._programs.start(params)
        self._compiled: dict[int, Any] = {}

    def prepare(self, updates: int) -> dict[str, int]:
        """Compiles what the first updates need, and makes one of each size.

        Returns:
          {'arguments', 'temporaries', 'total'} in bytes, of the largest size of all.
        """
        steps = [step % self._feed.steps for step in range(updates)]
        sizes = {self._feed.batcher.fits(step): step for step in steps}
        for size, step in {**sizes, self._largest: 0}.items():
            fed = self._feed.at(step, size)
            assert fed is not None
            update: Any = self._programs.update  # jitted
            made = update.lower(self._programs.shapes, self._consts, self._base, fed.arrays)
            self._compiled[size] = made.compile()
            self._make(size, fed.arrays)
        stats = self._compiled[self._largest].memory_analysis()
        outputs = stats.output_size_in_bytes - stats.alias_size_in_bytes
        parts = {'arguments': stats.argument_size_in_bytes}
        parts |= {'temporaries': stats.temp_size_in_bytes}
        return parts | {'total': sum(parts.values()) + outputs}

    @property
    def _largest(self) -> int:
        return len(self._feed.batcher.shapes) - 1

    def __call__(self, step: int) -> tuple[float, int]:
        """The update of that step: its seconds, and the tokens of its examples."""
        step %= self._feed.steps
        fed = self._feed.at(step)
        assert fed is not None
        size = self._feed.batcher.fits(step)
        jax.block_until_ready(fed.arrays)
        began = time.perf_counter()
        self._make(size, fed.arrays)
        return time.perf_counter() - began, fed.tokens

    def _make(self, size: int, arrays: Any) -> None:
        self._now, metrics = self._compiled[size](self._now, self._consts, self._base, arrays)
        jax.block_until_ready((self._now, metrics))


def measure(jobs: Sequence[Job], rounds: int, stopped: Callable[[], bool]) -> Costs | None:
    """Times the updates of all jobs in turns.

    Args:
      jobs: a run of each entry. Their weights are not needed: a fresh adapter costs the same.
      rounds: updates of each that are timed: those of steps 0, 1, ...
      stopped: asked before each; True ends it.

    Returns:
      label -> {'program': bytes, 'seconds': [rounds], 'tokens': [rounds]}; None where it was ended.
    """
    shared: dict[str, tuple[Built, list]] = {}
    updates: dict[str, Update] = {}
    found: Costs = {}
    for job in jobs:
        config, key = job.config, repr((job.config.model, job.config.data))
        if key not in shared:
            base = model.setup(config, fresh=False)
            shared[key] = base, feed.examples(config, base.tokenizer)
        base, rows = shared[key]
        fed = feed.from_examples(config, rows, base.mesh)
        updates[job.label] = Update(config, model.refit(config, base), fed)
        program = updates[job.label].prepare(rounds)
        found[job.label] = {'program': program, 'seconds': [], 'tokens': []}
        print(f'{job.label}: ready', flush=True)
    for step in range(rounds):
        for label, update in updates.items():
            if stopped():
                return None
            seconds, tokens = update(step)
            found[label]['seconds'].append(seconds)
            found[label]['tokens'].append(tokens)
            print(f'turn {step + 1} of {rounds}, {label}: {seconds:.2f} s', flush=True)
    return found


def identity(job: Job) -> dict[str, Any]:
    """What the cost of a job's update depends on, as JSON."""
    return {key: value for key, value in job.identity.items() if key not in FREE}


def write(file: pathlib.Path, jobs: Sequence[Job], rounds: int, found: Costs) -> None:
    """Keeps what `measure` found."""
    entries = {job.label: {'config': identity(job), **found[job.label]} for job in jobs}
    rundir.write_json(file, {'versions': results.versions(), 'rounds': rounds, 'entries': entries})


def read(file: pathlib.Path, jobs: Sequence[Job], rounds: int = 0) -> Costs:
    """What the file holds of these jobs; of none whose configuration has changed since.

    Args:
      file: that `write` wrote, or none.
      jobs: see `measure`.
      rounds: of that many turns only; 0 for any.
    """
    if not file.exists():
        return {}
    found = json.loads(file.read_text())
    entries = found['entries'] if rounds in (0, found['rounds']) else {}
    return {
        job.label: entries[job.label]
        for job in jobs
        if entries.get(job.label, {}).get('config') == identity(job)
    }


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
