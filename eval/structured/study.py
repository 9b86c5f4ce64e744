"""One task from its data to the runs of every arm: rates on validation rows, then the seeds.

Each finished run is a JSON of its own and never repeated; more seeds or methods later add theirs.
Test rows are measured for the runs of the seeds only: no rate is chosen by them.
"""

import pathlib
from collections.abc import Callable
from typing import Any

import jaxpeft as jp
from eval.structured import arms, runs
from eval.structured.arms import Fitted
from eval.structured.engine import Batch, Engine, Measure, batcher, eval_batcher, held
from eval.structured.runs import Bench, Job, Record, Settings
from eval.structured.task import Part, Task, shuffled
from train.batching import shared_shapes
from train.config import Optim


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
        for seed in (runs.SWEEP_SEED, *range(settings.seeds))
    ]
    size = settings.eval_batch
    (shape,), _ = shared_shapes(orders)
    _, measured = shared_shapes([eval_batcher(one, size) for one in (task.valid, task.test)])
    place = folder / task.name
    bench = Bench(model, params, task, control(task), shape, measured, settings, place, say)
    before = runs.kept(place / 'before.json', lambda: measure_base(bench))
    say(f'{task.name}: the base has {runs.figures(before["test"])}')
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


def measure_base(bench: Bench) -> Record:
    """The bare base on validation and test rows."""
    measure = Measure(jp.bind({}, bench.model.apply), bench.params, bench.task.accuracy)

    def one(part: Part) -> Record:
        batches = held(part, bench.settings.eval_batch, bench.held, structure=False)
        return measure(jp.State({}, {}), batches)

    return {'valid': one(bench.task.valid), 'test': one(bench.task.test)}


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
        bench.settings.lrs, bench.settings.extend, lambda lr: runs.swept(job, lr)
    )
    done = [runs.seeded(job, best, seed) for seed in range(bench.settings.seeds)]
    return {
        'method': fitted.arm.method,
        'ranks': fitted.ranks,
        'trainable': fitted.trainable,
        'lr': best,
        'sweep': {str(lr): nll for lr, nll in sorted(sweep.items())},
        'at_edge': at_edge,
        'runs': done,
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
