"""One task from its data to the runs of every arm: rates on validation rows, then the seeds.

Each finished run is a JSON of its own and never repeated; more seeds or methods later add theirs.
Test rows are measured for the runs of the seeds only: no rate is chosen by them.
"""

import json
import math
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import jaxpeft as jp
from eval import bar
from eval.structured import arms, suffix
from eval.structured.arms import Arm, Fitted
from eval.structured.engine import Batch, Engine, Measure, batcher, eval_batcher, held
from eval.structured.task import Part, Task, shuffled
from train.batching import shared_shapes
from train.config import Optim
from train.packing import Shape
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


def run(
    task: Task,
    model: Any,
    params: Any,
    settings: Settings,
    folder: pathlib.Path,
    say: Callable[[str], None] = print,
) -> Record:
    """All that is asked of a task; what `folder` holds already is read.

    Args:
      task: the task.
      model, params: the base.
      settings: how it is trained.
      folder: gets `TASK/before.json` and `TASK/ARM/{lr-RATE,seed-N}.json`.
      say: told about each run.

    Returns:
      {"notes", "encoder", "floor", "before", "arms": {name: {"method", "ranks", "trainable", "lr",
      "sweep", "at_edge", "runs"}}}.

    Raises:
      ValueError: for an unknown method or a rank that the base cannot hold.
      FloatingPointError: for a seed's run whose loss is not finite.
    """
    chosen = [arms.get(name) for name in settings.methods]
    orders = [
        batcher(task.train, settings.batch, seed, settings.steps)
        for seed in (SWEEP_SEED, *range(settings.seeds))
    ]
    size = settings.eval_batch
    shape, _ = shared_shapes(orders)
    _, measured = shared_shapes([eval_batcher(one, size) for one in (task.valid, task.test)])
    place = folder / task.name
    bench = Bench(model, params, task, control(task), shape, measured, settings, place, say)
    before = kept(place / 'before.json', lambda: measure_base(bench))
    say(f'{task.name}: the base has {_figures(before["test"])}')
    found = {}
    for arm in chosen:
        fitted = arms.fit(arm, model, params, settings.rank, task.encoder)
        found[arm.name] = _arm(bench, fitted)
    return {
        'notes': list(task.notes),
        'encoder': dict(task.encoder),
        'floor': task.floor,
        'before': before,
        'arms': found,
    }


def control(task: Task) -> Task:
    """The task with the structure of other examples, in every part."""
    train, valid, test = (
        shuffled(one, task.shuffled, seed)
        for seed, one in enumerate((task.train, task.valid, task.test))
    )
    return task._replace(train=train, valid=valid, test=test)


def kept(file: pathlib.Path, make: Callable[[], Record]) -> Record:
    """The record in the file, made and written where there is none."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, make())
    return json.loads(file.read_text())


def measure_base(bench: Bench) -> Record:
    """The bare base on validation and test rows."""
    measure = Measure(jp.bind({}, bench.model.apply), bench.params, bench.task.accuracy)

    def one(part: Part) -> Record:
        batches = held(part, bench.settings.eval_batch, bench.held, structure=False)
        return measure(jp.State({}, {}), batches)

    return {'valid': one(bench.task.valid), 'test': one(bench.task.test)}


class Job(NamedTuple):
    """The runs of one arm. `engine` makes it once, where a run is missing."""

    bench: Bench
    fitted: Fitted
    engine: Callable[[], Engine]
    batches: Callable[[str, bool], list[Batch]]

    @property
    def arm(self) -> Arm:
        return self.fitted.arm


def _arm(bench: Bench, fitted: Fitted) -> Record:
    made: dict[Any, Any] = {}

    def engine() -> Engine:
        if 'engine' not in made:
            optim = Optim(batch=bench.settings.batch)
            made['engine'] = Engine(
                bench.model, bench.params, fitted, optim, bench.settings.steps, bench.task.accuracy
            )
        return made['engine']

    def batches(name: str, others: bool) -> list[Batch]:
        if (name, others) not in made:
            part = getattr(bench.control if others else bench.task, name)
            made[name, others] = held(
                part, bench.settings.eval_batch, bench.held, fitted.arm.structure
            )
        return made[name, others]

    job = Job(bench, fitted, engine, batches)
    sweep, best, at_edge = search(
        bench.settings.lrs, bench.settings.extend, lambda lr: _swept(job, lr)
    )
    runs = [_seeded(job, best, seed) for seed in range(bench.settings.seeds)]
    return {
        'method': fitted.arm.method,
        'ranks': fitted.ranks,
        'trainable': fitted.trainable,
        'lr': best,
        'sweep': {str(lr): nll for lr, nll in sorted(sweep.items())},
        'at_edge': at_edge,
        'runs': runs,
    }


def search(
    lrs: tuple[float, ...], extend: int, loss_of: Callable[[float], float | None]
) -> tuple[dict[float, float | None], float, bool]:
    """The best rate; while it is the largest or smallest tried, one more beyond it, `extend` times.

    Args:
      lrs: ascending.
      extend: how many more at most.
      loss_of: the validation loss at a rate; None where it is not finite.

    Returns:
      (rate -> loss, the best rate, whether it is still at an end of those tried).

    Raises:
      ValueError: where no rate has a finite loss.

    Example:
      >>> search((1.0, 2.0), 5, lambda lr: (lr - 7.0) ** 2)[1:]
      (8.0, False)
    """
    found = {lr: loss_of(lr) for lr in lrs}
    ratio = lrs[1] / lrs[0] if len(lrs) > 1 else 3.0
    while True:
        finite = {lr: loss for lr, loss in found.items() if loss is not None}
        if not finite:
            raise ValueError(f'no rate of {sorted(found)} has a finite loss; try smaller --lrs')
        best = min(finite, key=lambda lr: finite[lr])
        at_edge = best in (min(found), max(found))
        if not at_edge or not extend:
            return found, best, at_edge
        extend -= 1
        following = best * ratio if best == max(found) else best / ratio
        following = float(f'{following:.6g}')
        found[following] = loss_of(following)


def _swept(job: Job, lr: float) -> float | None:
    """The validation loss of a run at this rate."""

    def make() -> Record:
        record, state = _train(job, lr, SWEEP_SEED, f'lr {lr:g}')
        return record | {'valid': _measure(job, state, 'valid')}

    record = kept(_folder(job) / f'lr-{lr:g}.json', make)
    return record['valid']['nll']


def _seeded(job: Job, lr: float, seed: int) -> Record:
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
    job.bench.say(f'{job.bench.task.name} {job.arm.name} seed {seed}: {_figures(record["test"])}')
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


def _figures(found: Record) -> str:
    nll = found['nll']
    text = f'{nll:.4f} nats a token, perplexity {math.exp(nll):.3f}'
    return text + (f', accuracy {100 * found["accuracy"]:.1f} %' if 'accuracy' in found else '')
