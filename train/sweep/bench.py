"""What K runs cost as one program, against the same K in turn.

Both sides run the update of `train.step` on the same batches, seeds apart and rates apart, and take
turns round by round. In turn every run is a program of its own, as K processes of `train.run` make
them: the rate is a constant of it, so each compiles. Compilation is timed with the cache off.

    step      median over rounds of (one update of all) / (one update of each)
    run       (compile + steps * step) together / (K compile + steps * step) in turn
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from train import feed, model, optimizer
from train import step as steps
from train.config import Config
from train.sweep import lanes as lanes_lib
from train.sweep.members import Member, config_of
from train.sweep.state import Sweep


class Together:
    """All members as one program, `width` at a time."""

    def __init__(self, built: model.Built, configs: Sequence[Config], examples: list, width: int):
        lanes = lanes_lib.make(configs, examples, built.mesh)
        self._sweep = Sweep(built, configs, [Member()] * len(configs), lanes, width)
        self._sweep.start()
        args = self._args()
        update: Any = self._sweep.programs.update  # jitted
        began = time.perf_counter()
        self._update = update.lower(*args).compile()
        self.compiled = time.perf_counter() - began
        self.memory = _memory(self._update)

    def _args(self) -> tuple:
        one = self._sweep
        return one.now, one.consts, one.numbers, one.built.params, one.fed.arrays

    def __call__(self) -> np.ndarray:
        """One update of all; their losses."""
        self._sweep.now, metrics = self._update(*self._args())
        return np.asarray(jax.device_get(metrics['loss']))


class InTurn:
    """Each member as a run of its own; the base is there once for all of them."""

    def __init__(self, built: model.Built, configs: Sequence[Config], examples: list):
        self.compiled, self._runs, self.memory = 0.0, [], {}
        for config in configs:
            plan = model.make_plan(config, built.model, built.params)
            state = model.adapter(config, plan, built.params, fresh=True)
            forward = model.bound(plan, built.model, built.tokenizer, training=True)
            fed = feed.from_examples(config, examples, built.mesh)
            rate = optimizer.schedule(config.optim, fed.steps)
            programs = steps.compile_programs(
                plan, forward, optimizer.make(config.optim, rate), rate, built.mesh, state.params,
                config.optim.seed,
            )  # fmt: skip
            batch = fed.at(0)
            assert batch is not None
            now, update = programs.start(state.params), programs.update
            lowered: Any = update
            began = time.perf_counter()
            update = lowered.lower(now, state.consts, built.params, batch.arrays).compile()
            self.compiled += time.perf_counter() - began
            self.memory = _memory(update)
            self._runs.append([update, now, state.consts, built.params, batch.arrays])

    def __call__(self) -> np.ndarray:
        """One update of each, one after the other; their losses."""
        losses = []
        for run in self._runs:
            update, *args = run
            run[1], metrics = update(*args)
            losses.append(float(jax.device_get(metrics['loss'])))
        return np.array(losses)


def _memory(compiled: Any) -> dict[str, int]:
    stats = compiled.memory_analysis()
    return {'arguments': stats.argument_size_in_bytes, 'temporaries': stats.temp_size_in_bytes}


def measure(
    config: Config, k: int, rounds: int, widths: Sequence[int], say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Times one method.

    Args:
      config: of the method; rate and seed are the members' own.
      k: members.
      rounds: of timed updates, after one untimed one of each side.
      widths: members at a time, see `train.sweep.train`; one side each.
      say: told of each round.

    Returns:
      {'method', 'k', 'steps': of a run, 'sides': name -> {'compile', 'seconds': [rounds],
      'memory'}, 'ratios': width -> {'step', 'run'}}; name is 'in turn' or a width.

    Raises:
      RuntimeError: where the losses of the two sides part.
    """
    built = model.setup(config, fresh=False)
    examples = feed.examples(config, built.tokenizer, say=lambda line: None)
    members = [Member(seed=i, lr=config.optim.lr * (1 + i / k)) for i in range(k)]
    configs = [config_of(config, member) for member in members]
    total = lanes_lib.make(configs[:1], examples, built.mesh).steps
    sides: dict[str, Any] = {
        str(width): Together(built, configs, examples, width) for width in widths
    }
    sides['in turn'] = InTurn(built, configs, examples)
    firsts = {name: side() for name, side in sides.items()}
    for name, losses in firsts.items():
        if not np.allclose(losses, firsts['in turn'], rtol=1e-5):
            raise RuntimeError(f'{name}: losses {losses}, in turn {firsts["in turn"]}')
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        order = list(sides)[:: 1 if number % 2 else -1]  # nobody is always the first
        for name in order:
            began = time.perf_counter()
            sides[name]()
            seconds[name].append(round(time.perf_counter() - began, 4))
        say(f'  round {number + 1}: ' + ', '.join(f'{n} {s[-1]:.2f} s' for n, s in seconds.items()))
    ratios = {str(width): _ratios(sides, seconds, str(width), total) for width in widths}
    return {
        'method': config.adapter.method,
        'k': k,
        'steps': total,
        'sides': {
            name: {'compile': round(side.compiled, 2), 'seconds': seconds[name], **side.memory}
            for name, side in sides.items()
        },
        'ratios': ratios,
    }


def _ratios(
    sides: dict[str, Any], seconds: dict[str, list[float]], name: str, total: int
) -> dict[str, float]:
    """Of each round, and of whole runs by the medians."""
    pairs = zip(seconds[name], seconds['in turn'], strict=True)
    mine, theirs = (
        sides[n].compiled + total * statistics.median(seconds[n]) for n in (name, 'in turn')
    )
    each = [a / b for a, b in pairs]
    return {
        'step': round(statistics.median(each), 3),
        'lowest': round(min(each), 3),
        'highest': round(max(each), 3),
        'run': round(mine / theirs, 3),
    }
