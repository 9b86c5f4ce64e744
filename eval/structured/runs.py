"""The single runs of an arm: each a JSON of its own, made once and read from then on.

A run that chooses a rate measures validation rows only; one of a seed that is reported measures the
test rows, and what the structure did.
"""

import json
import math
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import jaxpeft as jp
from eval import bar
from eval.structured import suffix
from eval.structured.arms import Arm, Fitted
from eval.structured.engine import Batch, Engine
from eval.structured.task import Task
from train.batching import Shape
from train.rundir import write_json

SWEEP_SEED = 1000  # of the runs that choose a rate: none of the seeds that are reported
HIDDEN_ROWS = 32  # test rows whose suffix is hidden

Record = dict[str, Any]


class Settings(NamedTuple):
    """How every arm is trained.

    Attributes:
      methods: names of arms.
      rank: of v2, which sets the number of trained parameters of all.
      seeds: runs of each arm at its chosen rate.
      steps, batch: of a run.
      eval_batch: rows measured at once.
      lrs: rates of the sweep, at least one, ascending.
      extend: how many rates at most are tried beyond the ends of `lrs`.
      progress: show a bar.
    """

    methods: tuple[str, ...]
    rank: int
    seeds: int
    steps: int
    batch: int
    eval_batch: int
    lrs: tuple[float, ...]
    extend: int
    progress: bool


class Bench(NamedTuple):
    """What all arms of a task share: base, data (true and shuffled), shapes of the batches."""

    model: Any
    params: Any
    task: Task
    control: Task
    shape: Shape
    held: Shape
    settings: Settings
    folder: pathlib.Path
    say: Callable[[str], None]


class Job(NamedTuple):
    """The runs of one arm. `engine` makes it once, where a run is missing."""

    bench: Bench
    fitted: Fitted
    engine: Callable[[], Engine]
    batches: Callable[[str, bool], list[Batch]]

    @property
    def arm(self) -> Arm:
        return self.fitted.arm


def kept(file: pathlib.Path, make: Callable[[], Record]) -> Record:
    """The record in the file, made and written where there is none."""
    if not file.exists():
        write_json(file, make())
    return json.loads(file.read_text())


def swept(job: Job, lr: float) -> float | None:
    """The validation loss of a run at this rate."""

    def make() -> Record:
        record, state = _train(job, lr, SWEEP_SEED, f'lr {lr:g}')
        return record | {'valid': _measure(job, state, 'valid')}

    record = kept(_folder(job) / f'lr-{lr:g}.json', make)
    return record['valid']['nll']


def seeded(job: Job, lr: float, seed: int) -> Record:
    """A run that is reported: validation and test rows, and what the structure did."""

    def make() -> Record:
        record, state = _train(job, lr, seed, f'seed {seed}')
        record['valid'], record['test'] = (_measure(job, state, k) for k in ('valid', 'test'))
        if record['test']['nll'] is None:
            raise FloatingPointError(
                f'{job.bench.task.name}, {job.arm.name}, seed {seed}: the loss at rate {lr:g} is '
                'not finite. Try smaller --lrs'
            )
        if job.arm.structure and not job.arm.shuffled:
            record['test_shuffled'] = _measure(job, state, 'test', others=True)
            hidden = job.bench.task.hide(min(HIDDEN_ROWS, len(job.bench.task.test.examples)), seed)
            record['suffix'] = suffix.check(
                job.engine(), state, hidden, job.bench.settings.eval_batch, job.bench.held
            )
        return record

    file = _folder(job) / f'seed-{seed}.json'
    record = kept(file, make)
    if record['lr'] != lr:
        raise ValueError(
            f'{file} was run at the rate {record["lr"]:g}, and the sweep chooses {lr:g}: the files '
            'of the sweep have changed; remove the folder, or give another --run_dir'
        )
    job.bench.say(f'{job.bench.task.name} {job.arm.name} seed {seed}: {figures(record["test"])}')
    return record


def _folder(job: Job) -> pathlib.Path:
    return job.bench.folder / job.arm.name


def _train(job: Job, lr: float, seed: int, what: str) -> tuple[Record, jp.State]:
    bench, steps = job.bench, job.bench.settings.steps
    data = bench.control if job.arm.shuffled else bench.task
    title = f'{bench.task.name} {job.arm.name} {what}'
    with bar.rows_bar(title, steps, bench.settings.progress, unit='updates') as advance:
        found = job.engine().train(data.train, bench.shape, lr, seed, advance)
    seconds = float(found.seconds.sum())
    record = {
        'task': bench.task.name,
        'arm': job.arm.name,
        'ranks': job.fitted.ranks,
        'trainable': job.fitted.trainable,
        'lr': lr,
        'seed': seed,
        'steps': steps,
        'loss_first': _finite(found.losses[0]),
        'loss_last': _finite(found.losses[-max(steps // 10, 1) :].mean()),
        'seconds': round(seconds, 3),
        'seconds_per_step': round(float(np.median(found.seconds)), 5),
        'tokens_per_second': round(found.tokens / seconds, 1),
    }
    return record, found.state


def _measure(job: Job, state: jp.State, name: str, others: bool = False) -> Record:
    batches = job.batches(name, others or job.arm.shuffled)
    found = job.engine().measure(state, batches)
    return found | {'nll': _finite(found['nll'])}


def _finite(x: float) -> float | None:
    return float(x) if math.isfinite(x) else None


def figures(found: Record) -> str:
    nll = found['nll']
    text = f'{nll:.4f} nats a token, perplexity {math.exp(nll):.3f}'
    return text + (f', accuracy {100 * found["accuracy"]:.1f} %' if 'accuracy' in found else '')
