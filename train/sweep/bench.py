"""What K runs cost as one program, against the same K in turn.

All sides run the update of `train.step` on the same rows, seeds and rates apart, and take turns
round by round. In turn every run is a program of its own, as K runs of `train.run` make them: the
rate is a constant of it, so each compiles. What compiling takes is the first update without a later
one's time, the compilation cache off.

    step      (one update of all) / (one update of each), median over rounds
    run       (compile + steps * step) together / (K compile + steps * step) in turn
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from train import feed, model, optimizer
from train import step as steps
from train.config import Config
from train.sweep import lanes as lanes_lib
from train.sweep import streams
from train.sweep.members import Member, config_of
from train.sweep.state import Sweep


class Way(NamedTuple):
    """How all members are trained as one program, see `train.sweep.train`."""

    width: int
    threads: int


WAYS = {'vmap': Way(0, 1), 'map': Way(1, 1), 'threads': Way(1, streams.cores())}


class Together:
    """All members as one program."""

    def __init__(self, built: model.Built, configs: Sequence[Config], examples: list, way: Way):
        lanes = lanes_lib.make(configs, examples, built.mesh)
        self._sweep = Sweep(built, configs, [Member()] * len(configs), lanes, *way)
        self._sweep.start()

    def _args(self) -> tuple:
        one = self._sweep
        return one.now, one.consts, one.numbers, one.built.params, one.fed.arrays

    def __call__(self) -> np.ndarray:
        """One update of all; their losses."""
        self._sweep.now, metrics = self._sweep.programs.update(*self._args())
        return np.asarray(jax.device_get(metrics['loss']))

    def memory(self) -> dict[str, int]:
        """Bytes of the program of all members, by the compiler."""
        stats = self._sweep.programs.jitted.lower(*self._args()).compile().memory_analysis()
        return {'arguments': stats.argument_size_in_bytes, 'temporaries': stats.temp_size_in_bytes}


class InTurn:
    """Each member as a run of its own; the base is there once for all of them."""

    def __init__(self, built: model.Built, configs: Sequence[Config], examples: list):
        self._runs = []
        for config in configs:
            plan = model.make_plan(config, built.model, built.params)
            state = model.adapter(config, plan, built.params, fresh=True)
            forward = model.bound(plan, built.model, built.tokenizer, training=True)
            fed = feed.from_examples(config, examples, built.mesh)
            rate = optimizer.schedule(config.optim, fed.steps)
            tx = optimizer.make(config.optim, rate)
            programs = steps.compile_programs(
                plan, forward, tx, rate, built.mesh, state.params, config.optim.seed
            )
            batch = fed.at(0)
            assert batch is not None
            now = programs.start(state.params)
            self._runs.append([programs.update, now, state.consts, built.params, batch.arrays])

    def __call__(self) -> np.ndarray:
        """One update of each, one after the other; their losses."""
        losses = []
        for run in self._runs:
            update, *args = run
            run[1], metrics = update(*args)
            losses.append(float(jax.device_get(metrics['loss'])))
        return np.array(losses)


def measure(
    config: Config, k: int, rounds: int, ways: Sequence[str], say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Times one method.

    Args:
      config: of the method; rate and seed are the members' own.
      k: members.
      rounds: of timed updates, after one of each side that compiles.
      ways: names of `WAYS`; one side each.
      say: told of each round.

    Returns:
      {'method', 'k', 'steps': of a run, 'sides': name -> {'compile', 'seconds': [rounds], ..},
      'ratios': way -> {'step', 'lowest', 'highest', 'run'}}; a side is 'in turn' or a way.

    Raises:
      RuntimeError: where the losses of two sides part.
    """
    built = model.setup(config, fresh=False)
    examples = feed.examples(config, built.tokenizer, say=lambda line: None)
    members = [Member(seed=i, lr=config.optim.lr * (1 + i / k)) for i in range(k)]
    configs = [config_of(config, member) for member in members]
    total = lanes_lib.make(configs[:1], examples, built.mesh).steps
    sides: dict[str, Any] = {way: Together(built, configs, examples, WAYS[way]) for way in ways}
    sides['in turn'] = InTurn(built, configs, examples)
    first: dict[str, float] = {}
    losses: dict[str, np.ndarray] = {}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for name, side in sides.items():
        first[name], losses[name] = _timed(side)
        if not np.allclose(losses[name], losses[ways[0]], rtol=1e-5):
            raise RuntimeError(f'losses {name}: {losses[name]}, {ways[0]}: {losses[ways[0]]}')
    for number in range(rounds):
        for name in list(sides)[:: 1 if number % 2 else -1]:  # nobody is always the first
            seconds[name].append(round(_timed(sides[name])[0], 4))
        say(f'  round {number + 1}: ' + ', '.join(f'{n} {s[-1]:.2f} s' for n, s in seconds.items()))
    compiling = {n: max(first[n] - statistics.median(seconds[n]), 0.0) for n in sides}
    return {
        'method': config.adapter.method,
        'k': k,
        'steps': total,
        'sides': {
            name: {
                'compile': round(compiling[name], 2),
                'seconds': seconds[name],
                **(side.memory() if name in ways else {}),
            }
            for name, side in sides.items()
        },
        'ratios': {way: _ratios(compiling, seconds, way, total) for way in ways},
    }


def _timed(side: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    began = time.perf_counter()
    losses = side()
    return time.perf_counter() - began, losses


def _ratios(
    compiling: dict[str, float], seconds: dict[str, list[float]], way: str, total: int
) -> dict[str, float]:
    """Of each round, and of whole runs by the medians."""
    each = [a / b for a, b in zip(seconds[way], seconds['in turn'], strict=True)]
    mine, theirs = (
        compiling[name] + total * statistics.median(seconds[name]) for name in (way, 'in turn')
    )
    found = statistics.median(each), min(each), max(each), mine / theirs
    names = ('step', 'lowest', 'highest', 'run')
    return {name: round(value, 3) for name, value in zip(names, found, strict=True)}
