"""The members' arrays, and what is known of each: one object that a sweep moves forward."""

import math
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxpeft as jp
from train import optimizer
from train.config import Config
from train.ledger import Ledger
from train.model import Built
from train.sweep import lanes as lanes_lib
from train.sweep import members as members_lib
from train.sweep import program
from train.sweep.members import Member

Tree = Any


class Look(NamedTuple):
    """What `on_eval` sees.

    Attributes:
      step: updates made.
      losses: member's number -> validation loss, penalty left out; of those that still train.
    """

    step: int
    losses: dict[int, float]


class Run(NamedTuple):
    """A member's run.

    Attributes:
      member, config: what was asked, and the configuration of the same run alone.
      state: the adapter: the one of the best validation loss, the last without validation.
      ledger: the counts; `seconds` are the member's share of the time of all.
      losses: the training loss of each update, float32 [steps made].
      validation: step -> validation loss.
      why: '' for a run that went to its end; else why it was dropped, and after which update.
    """

    member: Member
    config: Config
    state: jp.State
    ledger: Ledger
    losses: np.ndarray
    validation: dict[int, float]
    why: str


class Log:
    """What is known of one member so far."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.losses: list[float] = []
        self.validation: dict[int, float] = {}
        self.why = ''


class Sweep:
    """The members' arrays and logs.

    Args:
      built: the base.
      configs: each member's.
      members: as asked.
      lanes: their data.
      width, threads: see `train.sweep.train`.

    Attributes:
      slots: whose place is which: [slot] -> member.
      now, consts, numbers: by slot, what `program` is mapped over.
      best: by slot, the trained leaves of the best validation loss; None before the first.
      final: member -> the adapter of one that was dropped.
      made: updates made.
    """

    def __init__(
        self,
        built: Built,
        configs: Sequence[Config],
        members: Sequence[Member],
        lanes: lanes_lib.Lanes,
        width: int,
        threads: int = 1,
    ):
        self.built, self.configs, self.members, self.lanes = built, configs, members, lanes
        self.numbers = members_lib.numbers(configs)
        first = configs[0]
        self.programs = program.compile_programs(
            built,
            first,
            lanes.steps,
            lanes.own,
            lambda numbers: members_lib.with_numbers(first, numbers),
            width,
            threads,
        )
        self.slots = list(range(len(members)))
        self.logs = [Log() for _ in members]
        self.final: dict[int, jp.State] = {}
        self.best: Tree = None
        self.made, self._warm = 0, False
        optimizer.check(first.optim, self.shapes()[0].params)

    @property
    def alive(self) -> list[int]:
        """The members that still train."""
        return [i for i in self.slots if not self.logs[i].why]

    def shapes(self) -> tuple[Tree, Tree]:
        """`now` and `consts` as shapes with shardings."""
        return self.programs.shapes(program.keys_of(self._living()), self.numbers)

    def start(self) -> int:
        """Draws every member's adapter; the number of updates made, 0."""
        keys = program.keys_of(self.configs)
        self.now, self.consts = self.programs.start(keys, self.numbers, self.built.params)
        self.feed()
        return 0

    def feed(self) -> None:
        """Packs the next batches, where there is a next update."""
        if self.made < self.lanes.steps:
            self.fed = self.lanes.at(self.made, self.slots)

    def _living(self) -> list[Config]:
        return [self.configs[i] for i in self.slots]

    def update(self, number: int) -> dict[int, float]:
        """One update of all; the losses of the living."""
        began = time.perf_counter()
        args = (self.now, self.consts, self.numbers, self.built.params, self.fed.arrays)
        self.now, pending = self.programs.update(*args)
        fed, self.made = self.fed, number
        self.feed()  # the host packs while the devices work
        metrics = jax.device_get(pending)
        took = (time.perf_counter() - began) / len(self.alive)
        losses = {}
        for slot, i in enumerate(self.slots):
            log = self.logs[i]
            if log.why:
                continue
            bad = [name for name, x in metrics.items() if not math.isfinite(x[slot])]
            if bad:
                log.why = f'{bad[0]} is not finite at step {number}'
                self._keep(slot)
                continue
            losses[i] = float(metrics['loss'][slot])
            log.losses.append(losses[i])
            log.ledger = log.ledger.after(fed.tokens[slot], fed.examples[slot], took, self._warm)
        self._warm = True
        return losses

    def judge(self, number: int) -> Look:
        """Validates all; keeps each one's best adapter, ends those that early stopping ends."""
        began = time.perf_counter()
        sums = np.zeros((2, len(self.slots)))
        for batch in self.lanes.validation(self.slots):
            args = (self.now.params, self.consts, self.numbers, self.built.params, batch)
            sums += np.stack(jax.device_get(self.programs.validate(*args)))
        spent = (time.perf_counter() - began) / len(self.alive)
        better, losses = np.zeros(len(self.slots), bool), {}
        for slot, i in enumerate(self.slots):
            log, loss = self.logs[i], float(sums[0, slot] / sums[1, slot])
            if log.why:
                continue
            if not math.isfinite(loss):
                log.why = f'the validation loss is not finite after step {number}'
                self._keep(slot)
                continue
            losses[i] = log.validation[number] = loss
            patience = self.configs[i].validation.early_stop_patience
            log.ledger = log.ledger.judged(loss, patience, spent)
            better[slot] = log.ledger.best_step == number
        self.best = _taken(better, self.now.params, self.best)
        stopped = [i for i in losses if self.logs[i].ledger.stopped]
        self.drop(stopped, f'stopped early after step {number}')
        return Look(number, {i: loss for i, loss in losses.items() if i not in stopped})

    def drop(self, numbers: Iterable[int], why: str) -> None:
        """Ends members; their places stay until `gather`."""
        for i in numbers:
            if i not in range(len(self.members)):
                raise ValueError(f'no member has the number {i}: there are {len(self.members)}')
            if not self.logs[i].why:
                self.logs[i].why = why
                self._keep(self.slots.index(i))

    def gather(self) -> None:
        """Closes up the living where half of the places are idle."""
        alive = self.alive
        if not alive or 2 * len(alive) > len(self.slots):
            return
        places = np.array([self.slots.index(i) for i in alive], np.int32)
        pick = lambda tree: jax.tree.map(lambda x: x[places], tree)
        self.now, self.consts, self.best = map(pick, (self.now, self.consts, self.best))
        self.stand(alive)
        self._warm = False
        self.feed()

    def stand(self, members: list[int]) -> None:
        """Gives these members the places; their arrays come after (a checkpoint's)."""
        places = np.array([self.slots.index(i) for i in members], np.int32)
        self.numbers = jax.tree.map(lambda x: x[places], self.numbers)
        self.slots = members

    def _keep(self, slot: int) -> None:
        """Takes a member's adapter out: its best, or its last where it was never validated."""
        i = self.slots[slot]
        params = self.now.params if self.logs[i].ledger.best_loss is None else self.best
        one = jax.tree.map(lambda x: x[slot], jp.State(params, self.consts))
        self.final[i] = one

    def runs(self) -> list[Run]:
        """Every member's run."""
        for slot, i in enumerate(self.slots):
            if i not in self.final:
                self._keep(slot)
        logs = zip(self.members, self.configs, self.logs, strict=True)
        return [
            Run(
                m,
                c,
                self.final[i],
                log.ledger,
                np.array(log.losses, np.float32),
                log.validation,
                log.why,
            )
            for i, (m, c, log) in enumerate(logs)
        ]


def _taken(better: np.ndarray, new: Tree, old: Tree) -> Tree:
    """`new` for the members that are better, else `old`; copies, since `new` is donated later."""
    if old is None:
        return jax.tree.map(jnp.copy, new)
    pick = lambda n, o: jnp.where(better.reshape(-1, *[1] * (n.ndim - 1)), n, o)
    return jax.tree.map(pick, new, old)
