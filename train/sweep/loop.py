"""The loop of a sweep: feed, update all, look, judge each, drop some, save."""

import contextlib
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import jax

from train import loop
from train.config import Config
from train.model import Built
from train.stop import Stop
from train.sweep import kept, streams
from train.sweep import lanes as lanes_lib
from train.sweep.members import Member, config_of
from train.sweep.state import Look, Run, Sweep


class Outcome(NamedTuple):
    """What a sweep gave.

    Attributes:
      runs: in the order of the members.
      seconds: of this call, compilation included.
      finished: False where a SIGTERM cut it short.
    """

    runs: list[Run]
    seconds: float
    finished: bool


def train(
    config: Config,
    built: Built,
    examples: list,
    members: Sequence[Member],
    *,
    on_eval: Callable[[Look], Iterable[int] | None] | None = None,
    on_step: Callable[[int, Mapping[int, float]], None] | None = None,
    width: int | None = None,
    threads: int | None = None,
    folder: pathlib.Path | None = None,
    stop: Stop | None = None,
) -> Outcome:
    """Trains all members as one program.

    Args:
      config: what the members have in common; its method, data, budget and validation.
      built: from `train.model.setup(config, fresh=False)`: the base. Its adapter is not used, so
        sweeps of several methods can share one.
      examples: from `train.feed.examples(config, built.tokenizer)`.
      members: at least one; `groups` tells which can train together.
      on_eval: called after each validation; may return the numbers of members to drop.
      on_step: called after each update with its number and the training losses of the living.
      width: members that are mapped (`jax.vmap`) at once, the others after them; 0: all. None: 1 on
        CPU, where more were slower and took the memory of so many runs, all elsewhere.
      threads: host threads that take a part of the members each, on one CPU device. None: its
        cores, elsewhere 1. No figure depends on width or threads; activations take the memory of
        width * threads runs.
      folder: for checkpoints, every `config.run.save_steps` updates; the same call continues there.
      stop: a SIGTERM asked for an end: it comes after a checkpoint, with `finished` False.

    Returns:
      A Run for each member, dropped ones included.

    Raises:
      ValueError: no member, members that cannot train together, a member that `config` refuses, an
        `--init_from`, a number that `on_eval` gave and nobody has; a folder of another sweep.
    """
    configs = _configs(config, members)
    began = time.perf_counter()
    lanes = lanes_lib.make(configs, examples, built.mesh)
    if threads is None:
        threads = streams.usual(built.mesh)
    sweep = Sweep(built, configs, members, lanes, _width(width), threads)
    ending = stop.deferred() if stop else contextlib.nullcontext()
    with ending, kept.Kept(folder, configs) as checkpoints:
        first = checkpoints.restore(sweep) if checkpoints.found else sweep.start()
        for number in range(first + 1, lanes.steps + 1):
            if not sweep.alive or (stop and stop.asked):
                break
            losses = sweep.update(number)
            if on_step is not None:
                on_step(number, losses)
            if sweep.alive and loop.validates(config, lanes, number):
                look = sweep.judge(number)
                asked = on_eval(look) if on_eval is not None else None
                sweep.drop(asked or (), f'pruned after step {number}')
            sweep.gather()
            if loop.due(config.run.save_steps, number, lanes):
                checkpoints.save(sweep)
        if stop and stop.asked:
            checkpoints.save(sweep)
    finished = (not sweep.alive or sweep.made == lanes.steps) and not (stop and stop.asked)
    return Outcome(sweep.runs(), time.perf_counter() - began, finished)


def _width(asked: int | None) -> int:
    if asked is None:
        return 1 if jax.default_backend() == 'cpu' else 0
    if asked < 0:
        raise ValueError(f'width is a number of members, or 0 for all, got {asked}')
    return asked


def _configs(config: Config, members: Sequence[Member]) -> list[Config]:
    if not members:
        raise ValueError('a sweep needs at least one member, got none')
    if config.adapter.init_from:
        raise ValueError('--init_from starts one run; a sweep draws the start of each member')
    return [config_of(config, member) for member in members]
