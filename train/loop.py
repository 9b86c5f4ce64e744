"""The training loop, as a straight line: feed, update, look, judge, write, save."""

import math
import pathlib
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxpeft as jp
from train import optimizer, record
from train.checkpoint import Checkpoints
from train.config import Config
from train.feed import Course, Fed, Feed
from train.ledger import Ledger
from train.model import Built
from train.progress import Progress
from train.step import Programs, TrainState, compile_programs
from train.stop import Stop

METRICS = ('loss', 'penalty', 'lr', 'grad_norm')  # of an update, in the order of metrics.jsonl


class Outcome(NamedTuple):
    """How training ended.

    Attributes:
      state: the adapter after the last update (adapter/ on disk may hold an earlier, better one).
      ledger: the counts.
      finished: False where a SIGTERM cut it short.
    """

    state: jp.State
    ledger: Ledger
    finished: bool


def train(config: Config, built: Built, feed: Feed, folder: pathlib.Path, stop: Stop) -> Outcome:
    """Trains to the end, from the newest checkpoint where there is one.

    With validation, `folder/adapter` holds the adapter of the best validation loss so far, else the
    last one, written at the end.

    Raises:
      FloatingPointError: for a loss or gradient that is not finite; nothing of it is saved.
    """
    rate = optimizer.schedule(config.optim, feed.steps)
    optimizer.check(config.optim, built.state.params)
    warmup = optimizer.warmup_of(config.optim, feed.steps)
    if warmup >= feed.steps:
        print(f'note: a warm-up of {warmup} in {feed.steps} updates: --lr is never reached')
    tx = optimizer.make(config.optim, rate)
    params, consts = built.state
    programs = compile_programs(
        built.plan, built.forward, tx, rate, built.mesh, params, config.optim.seed, built.evaluated
    )
    wandb = record.find_wandb(config.run.wandb)
    checkpoints = Checkpoints(folder / 'checkpoints', config.run.save_total_limit)
    with stop.deferred(), checkpoints:
        if checkpoints.latest() is None:
            now, ledger = programs.start(params), Ledger()
        else:
            now, consts, ledger = checkpoints.restore(programs.shapes, consts)
        first = ledger.step
        lines = record.Record(folder, first, config, wandb)
        with lines, Progress(ledger, feed.steps) as progress:
            fed, compiled = feed.at(first), set[tuple[int, ...]]()
            while fed is not None and not ledger.stopped and not stop.asked:
                began = time.perf_counter()
                now, pending = programs.update(now, consts, built.params, fed.arrays)
                following = feed.at(ledger.step + 1)  # the host packs while the devices work
                metrics = finite(jax.device_get(pending), fed, ledger.step + 1)
                took = time.perf_counter() - began
                shape = fed.arrays['tokens'].shape  # a program is compiled for each
                ledger = ledger.after(fed.tokens, fed.examples, took, warm=shape in compiled)
                compiled.add(shape)
                if validates(config, feed, ledger.step):
                    loss, spent = validation_loss(programs, now, consts, built, feed)
                    ledger = ledger.judged(loss, config.validation.early_stop_patience, spent)
                    metrics['val_loss'] = loss
                    if ledger.best_step == ledger.step:
                        save_adapter(folder, built, jp.State(now.params, consts))
                logged = due(config.run.log_steps, ledger.step, feed) or 'val_loss' in metrics
                if logged:
                    lines.write(entry(ledger, metrics))
                progress.show(ledger, metrics, logged)
                if due(config.run.save_steps, ledger.step, feed):
                    lines.flush()
                    checkpoints.save(now, consts, ledger)
                fed = following
        checkpoints.save(now, consts, ledger)  # after an early stop or a SIGTERM; else it is there
    state = jp.State(now.params, consts)
    finished = (fed is None or ledger.stopped) and not stop.asked
    if finished and config.validation.eval_strategy == 'no':
        save_adapter(folder, built, state)
    return Outcome(state, ledger, finished)


def finite(metrics: Mapping[str, np.ndarray], fed: Fed, step: int) -> dict[str, float]:
    """The metrics as floats.

    Raises:
      FloatingPointError: where the loss, penalty, gradient or new adapter is not finite, naming the
        step and the data set's rows in its batch.
    """
    bad = {name: float(value) for name, value in metrics.items() if not math.isfinite(value)}
    if bad:
        what = ', '.join(f'{name} is {value}' for name, value in bad.items())
        rows = ', '.join(map(str, sorted(fed.rows[fed.rows >= 0].tolist())))
        raise FloatingPointError(
            f'step {step}: {what}. The batch holds rows {rows} of the data set (counted from 0). '
            'Nothing of this step is saved. Try a smaller --lr or --dtype float32; see those rows'
        )
    return {name: float(metrics[name]) for name in METRICS}


def due(every: int, step: int, feed: Course) -> bool:
    """Each `every` updates, and after the last."""
    return step % every == 0 or step == feed.steps


def validates(config: Config, feed: Course, step: int) -> bool:
    """Whether the validation loss is due after this update; always after the last one."""
    strategy = config.validation.eval_strategy
    if strategy == 'no':
        return False
    if strategy == 'epoch':
        return feed.ends_epoch(step) or step == feed.steps
    return due(config.validation.eval_steps, step, feed)


def validation_loss(
    programs: Programs, now: TrainState, consts: Any, built: Built, feed: Feed
) -> tuple[float, float]:
    """The held-out rows' loss a labelled token, penalty left out, and the seconds that it took."""
    began = time.perf_counter()
    nll = weight = 0.0
    for batch in feed.validation:
        sums = programs.validate(now.params, consts, built.params, batch)
        one, w = jax.device_get(sums)
        nll, weight = nll + float(one), weight + float(w)
    return nll / weight, time.perf_counter() - began


def entry(ledger: Ledger, metrics: Mapping[str, float]) -> dict[str, float]:
    """A line of metrics.jsonl; `tokens` and `seconds` count from the start of the run."""
    counts = {'tokens': ledger.tokens, 'seconds': round(ledger.seconds, 3)}
    return {'step': ledger.step, **metrics, **counts}


def save_adapter(folder: pathlib.Path, built: Built, state: jp.State) -> None:
    """Writes folder/adapter, whole or not at all."""
    name = built.model.config.name
    jp.save_adapter(folder / 'adapter', built.plan, state, built.params, base_name=name)
