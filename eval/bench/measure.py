"""Measuring a group: its subjects take turns, round by round."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from eval.bench import budget
from eval.bench.context import Context
from eval.bench.pool import Pool, WorkerError
from eval.bench.rows import Row, Subject


class Samples(NamedTuple):
    """What was measured of a subject.

    Attributes:
      values: one figure a timed round: `facts['value']` where a side gives one, else seconds.
      facts: of every repetition, untimed ones included.
      error: why there is no more, '' where all went well.
    """

    values: list[float]
    facts: list[dict[str, Any]]
    error: str = ''


def subjects(rows: Sequence[Row]) -> list[Subject]:
    """The subjects of some rows, each once, ours before theirs: adapters are ours to write."""
    ours = [row.ours for row in rows]
    theirs = [row.theirs for row in rows if row.theirs is not None]
    return list({subject.key: subject for subject in [*ours, *theirs]}.values())


def group(
    rows: Sequence[Row],
    context: Context,
    say: Callable[[str], None] = print,
    until: float = math.inf,
) -> dict[str, Samples]:
    """Measures the rows of one group.

    Every subject is made ready; then they run `rounds` times, all of them in turn, those of fresh
    processes in a new one each time. In its turn a warm subject runs once before what is
    timed, as a training step follows a training step. In the first turn that run may compile; in
    the others it gets memory back, which went to other subjects, or from a virtual machine to its
    host, while they ran: that cost our DoRA step 1 s of 4 on such a machine.
    A subject that fails is left out of the turns that follow.

    Args:
      rows: of the group.
      context: the shape, and how many rounds.
      say: is told each figure.
      until: no round begins that would end later, by `time.monotonic`, after `budget.LEAST`.

    Returns:
      Subject.key -> Samples.
    """
    found = {subject.key: Samples([], []) for subject in subjects(rows)}
    limits = [row.rounds for row in rows if row.rounds is not None]
    rounds = min([context.rounds, *limits])
    runs = max([1, *(row.batches for row in rows)])
    with Pool(context) as pool:
        for turn in range(-1, rounds):
            timed, started = 0 if turn < 0 else runs, time.monotonic()
            for subject in subjects(rows):
                if not found[subject.key].error:
                    found[subject.key] = _turn(pool, subject, timed, found[subject.key])
                    say(_line(subject, turn, found[subject.key]))
            if turn + 1 < rounds and budget.over(turn + 1, started, until):
                say(f'  {turn + 1} rounds, not {rounds}: the time is up')
                break
    return found


def _turn(pool: Pool, subject: Subject, timed: int, before: Samples) -> Samples:
    """`timed` runs, after one that does not count in a warm process; with 0, what comes before."""
    untimed = int(bool(timed) and not subject.fresh)
    try:
        if not timed:
            pool.prepare(subject)
        made = [pool.run(subject) for _ in range(untimed + timed)]
    except WorkerError as error:
        return before._replace(error=str(error))
    figures = [facts.get('value', seconds) for seconds, facts in made[untimed:]]
    values = [*before.values, statistics.fmean(figures)] if timed else before.values
    return Samples(values, [*before.facts, *(facts for _, facts in made)])


def _line(subject: Subject, turn: int, samples: Samples) -> str:
    options = ' '.join(str(value) for value in subject.spec.values())
    head = f'  {subject.side} {options}: '
    if samples.error:
        return head + samples.error
    return head + ('ready' if turn < 0 else f'{samples.values[-1]:.4g}')
